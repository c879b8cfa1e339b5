//! Rules of the repository, as tests: see `tests/`. There is no code here.
