use futures::FutureExt as _;
use janusfs_types::InodeId;

use super::*;

/// Runs with timers that fire.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    janusfs_env::tasks::block_on(runtime.handle(), future)
}

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const FILE: Fact = Fact::Attr(InodeId(7));

fn caller(client: ClientId, remote: bool) -> Option<Caller> {
    Some(Caller {
        client,
        wants_lease: true,
        remote,
    })
}

fn name(name: &'static str) -> Fact {
    Fact::Name(InodeId::ROOT, Bytes::from_static(name.as_bytes()))
}

fn read(client: ClientId, since: u64, seen: &[Fact]) -> Account {
    Account {
        caller: caller(client, false),
        since,
        tells: true,
        seen: seen.iter().map(Fact::mark).collect(),
        changed: Vec::new(),
    }
}

fn change(client: ClientId, watches: &Watches, changed: &[Fact]) -> Account {
    Account {
        caller: caller(client, false),
        since: watches.begin(),
        tells: true,
        seen: Vec::new(),
        changed: changed.to_vec(),
    }
}

/// Commits and settles.
async fn commit(watches: &Arc<Watches>, account: Account) -> bool {
    watches.committing(account).committed(true).await
}

/// Starts a client's watch, as its first call does; nothing is to be forgotten yet.
fn start(watches: &Watches, client: ClientId, remote: bool) {
    assert!(watches.next(client, 0, remote).now_or_never().is_none());
}

#[test]
fn a_change_waits_until_everyone_who_believed_otherwise_has_forgotten() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        let since = watches.begin();
        assert!(commit(&watches, read(A, since, &[FILE, name("x")])).await);
        let mut changing = Box::pin(commit(&watches, change(B, &watches, &[name("x")])));
        assert!(changing.as_mut().now_or_never().is_none(), "A believes it");
        let (batch, facts) = watches.next(A, 0, false).await;
        assert_eq!(facts, [name("x")], "and nothing else");
        assert!(
            changing.as_mut().now_or_never().is_none(),
            "told, but not done"
        );
        // A lost answer is given again.
        assert_eq!(watches.next(A, 0, false).await, (batch, facts));
        start_from(&watches, A, batch);
        changing.await;
        commit(&watches, change(B, &watches, &[name("x")]))
            .now_or_never()
            .expect("nobody believes it any more");
        let mut other = Box::pin(commit(&watches, change(B, &watches, &[FILE])));
        assert!(
            other.as_mut().now_or_never().is_none(),
            "A still believes the file's attributes"
        );
    });
}

/// Acknowledges a batch and waits for the next, which does not come.
fn start_from(watches: &Watches, client: ClientId, acked: u64) {
    assert!(watches.next(client, acked, false).now_or_never().is_none());
}

#[test]
fn a_second_change_waits_for_what_the_first_one_asked_for() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        assert!(commit(&watches, read(A, 0, &[FILE])).await);
        let mut first = Box::pin(commit(&watches, change(B, &watches, &[FILE])));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(commit(&watches, change(B, &watches, &[FILE])));
        assert!(second.as_mut().now_or_never().is_none(), "not handed out");
        let (batch, _) = watches.next(A, 0, false).await;
        let mut third = Box::pin(commit(&watches, change(B, &watches, &[FILE])));
        assert!(
            third.as_mut().now_or_never().is_none(),
            "handed out, not forgotten"
        );
        start_from(&watches, A, batch);
        first.await;
        second.await;
        third.await;
    });
}

#[test]
fn an_answer_that_was_overtaken_gets_no_lease() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        let since = watches.begin();
        commit(&watches, change(B, &watches, &[FILE])).await;
        assert!(!commit(&watches, read(A, since, &[FILE])).await);
        assert!(
            commit(&watches, read(A, since, &[name("x")])).await,
            "another fact"
        );
        assert!(
            commit(&watches, read(A, watches.begin(), &[FILE])).await,
            "read again"
        );
    });
}

#[test]
fn a_transaction_older_than_the_log_gets_no_lease() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        let since = watches.begin();
        for number in 0..=LOG_MAX as u64 {
            commit(
                &watches,
                change(B, &watches, &[Fact::Attr(InodeId(1000 + number))]),
            )
            .await;
        }
        assert!(!commit(&watches, read(A, since, &[FILE])).await);
    });
}

#[test]
fn the_maker_of_a_change_keeps_its_leases() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        assert!(commit(&watches, read(A, 0, &[FILE])).await);
        let own = change(A, &watches, &[FILE]);
        assert_eq!(
            commit(&watches, own).now_or_never(),
            Some(true),
            "nothing else was read"
        );
        let mut changing = Box::pin(commit(&watches, change(B, &watches, &[FILE])));
        assert!(changing.as_mut().now_or_never().is_none());
    });
}

#[test]
fn what_a_client_changes_is_leased_to_it_even_if_its_answer_is_not() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        let since = watches.begin();
        commit(&watches, change(B, &watches, &[FILE])).await;
        let renaming = Account {
            caller: caller(A, false),
            since,
            tells: true,
            seen: vec![FILE.mark()],
            changed: vec![name("new"), name("old")],
        };
        assert!(!commit(&watches, renaming).await, "FILE was overtaken");
        let mut changing = Box::pin(commit(&watches, change(B, &watches, &[name("new")])));
        assert!(
            changing.as_mut().now_or_never().is_none(),
            "A believes the new name"
        );
    });
}

#[test]
fn leases_run_out() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        let now = clock::now();
        start(&watches, A, false);
        let waits = |at: Duration| {
            watches
                .account(&change(B, &watches, &[FILE]), now + at)
                .1
                .len()
        };
        assert!(watches.account(&read(A, 0, &[FILE]), now).0);
        assert_eq!(waits(LEASE - Duration::from_millis(1)), 1);
        assert!(
            watches
                .account(&read(A, watches.begin(), &[FILE]), now + LEASE)
                .0
        );
        assert_eq!(waits(LEASE * 2 - Duration::from_millis(1)), 1);
        assert!(
            watches
                .account(&read(A, watches.begin(), &[name("x")]), now + LEASE)
                .0
        );
        let x = watches.account(&change(B, &watches, &[name("x")]), now + LEASE * 4);
        assert!(x.1.is_empty());
    });
}

#[test]
fn who_does_not_watch_gets_no_lease() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        assert!(!commit(&watches, read(A, 0, &[FILE])).await);
        start(&watches, A, false);
        let late = clock::now() + SILENT * 2;
        assert!(
            !watches.account(&read(A, 0, &[FILE]), late).0,
            "not any more"
        );
    });
}

#[test]
fn clients_in_other_processes_get_leases_only_once_the_store_tells_of_them() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, true);
        let now = clock::now();
        let remote = |since| Account {
            caller: caller(A, true),
            ..read(A, since, &[FILE])
        };
        assert!(!watches.account(&remote(0), now).0);
        assert!(watches.remote_is_unknown());
        watches.remote_is_known();
        assert!(watches.account(&remote(0), now).0);
        assert!(!watches.remote_ended(now), "it watches");
        assert!(watches.remote_ended(now + SILENT * 3));
        assert!(watches.remote_is_unknown());
        assert!(
            !watches.account(&remote(0), now).0,
            "and is told of again first"
        );
    });
}

#[test]
fn the_first_change_after_a_restart_waits_for_leases_of_before() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        let start = clock::now();
        watches.remember(start);
        commit(&watches, read(A, 0, &[FILE]))
            .now_or_never()
            .expect("reading goes on");
        commit(&watches, change(B, &watches, &[FILE])).await;
        assert!(clock::now() >= start + LEASE);
        commit(&watches, change(B, &watches, &[FILE]))
            .now_or_never()
            .expect("settled");
    });
}

#[test]
fn nobody_is_answered_with_a_change_that_another_still_waits_for() {
    block_on(async {
        let watches = Arc::new(Watches::new());
        start(&watches, A, false);
        assert!(commit(&watches, read(A, 0, &[name("x")])).await);
        let mut changing = Box::pin(commit(&watches, change(B, &watches, &[name("x")])));
        assert!(changing.as_mut().now_or_never().is_none(), "A believes it");
        let reading = |seen| {
            let mut reading = read(B, watches.begin(), &[seen]);
            reading.caller = None;
            reading
        };
        commit(&watches, reading(name("y")))
            .now_or_never()
            .expect("another name");
        let mut seeing = Box::pin(commit(&watches, reading(name("x"))));
        assert!(
            seeing.as_mut().now_or_never().is_none(),
            "A does not see it yet"
        );
        let (batch, _) = watches.next(A, 0, false).await;
        start_from(&watches, A, batch);
        changing.await;
        seeing.await;
    });
}

#[test]
fn a_change_that_fails_holds_nobody_up() {
    let watches = Arc::new(Watches::new());
    block_on(async {
        start(&watches, A, false);
        drop(watches.committing(change(B, &watches, &[FILE])));
        let mut reading = read(B, watches.begin(), &[FILE]);
        reading.caller = None;
        commit(&watches, reading)
            .now_or_never()
            .expect("nothing is being changed");
    });
}
