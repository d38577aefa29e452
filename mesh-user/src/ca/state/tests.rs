//! Writes are whole, grouped, seen by replicas, and safe from crashes.

use super::*;

fn table(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY)")
}

fn count(state: &State) -> i64 {
    state.read(|c| c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))).unwrap()
}

#[tokio::test]
async fn writes_are_whole_or_nothing_and_do_not_hinder_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("ca")).unwrap();
    state.write(table).await.unwrap();
    let good = |x: i64| state.write(move |c| c.execute("INSERT INTO t VALUES (?1)", [x]).map(|_| ()));
    let bad = state.write(|c| {
        c.execute("INSERT INTO t VALUES (1000)", [])?;
        c.execute("INSERT INTO nothing VALUES (1)", []).map(|_| ())
    });
    let (goods, bad) = tokio::join!(futures_util::future::join_all((0..300).map(good)), bad);
    assert!(goods.iter().all(Result::is_ok));
    assert!(bad.unwrap_err().to_string().contains("nothing"));
    assert_eq!(count(&state), 300);
}

#[tokio::test]
async fn replicas_see_and_are_told_of_each_others_writes() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    let (one, other) = (State::open(&directory).unwrap(), State::open(&directory).unwrap());
    let mut told = other.changed();
    one.write(table).await.unwrap();
    one.write(|c| c.execute("INSERT INTO t VALUES (1)", []).map(|_| ())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), told.changed()).await.unwrap().unwrap();
    assert_eq!(count(&other), 1);
}

#[test]
fn a_file_of_a_newer_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ca");
    drop(State::open(&directory).unwrap());
    let connection = Connection::open(directory.join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 9999).unwrap();
    let error = State::open(&directory).unwrap_err().to_string();
    assert!(error.contains("newer than this program"), "{error}");
}

#[test]
fn a_folder_that_takes_no_writes_is_named_with_the_remedy() {
    use std::io::{Error, ErrorKind};
    for (kind, refused) in [
        (ErrorKind::ReadOnlyFilesystem, true),
        (ErrorKind::PermissionDenied, true),
        (ErrorKind::StorageFull, false),
    ] {
        assert_eq!(is_refused(&Error::from(kind)), refused, "{kind}");
    }
    let error = not_writable(Path::new("/ca"), &"attempt to write a readonly database").to_string();
    assert!(error.contains("/ca") && error.contains("has to be writable"), "{error}");
    assert!(error.contains("pluggedIn"), "{error}");
}
