//! Random bytes from the system, for ids, nonces and secrets.

/// Returns `N` random bytes.
///
/// # Panics
/// If the system has no randomness to give, which Linux does not do after boot.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// Returns a random number.
#[must_use]
pub fn random_u64() -> u64 {
    u64::from_le_bytes(random_bytes())
}
