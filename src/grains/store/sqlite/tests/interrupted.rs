//! Upgrades that are cut off: a process is really killed, at every statement and at moments in between.
//!
//! The process is this test program again, told by the environment to run [`child`] only.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

use super::super::latest_version;
use super::super::lock::StoreLock;
use super::super::open::connect;
use super::super::recognise::{Recognised, recognise};
use super::super::upgrade::upgrade;
use super::*;

const CHILD: &str = "grains::store::sqlite::tests::interrupted::child";
const PATH: &str = "GRANARY_TEST_STORE_PATH";
const DIE_AT: &str = "GRANARY_TEST_STORE_DIE_AT";

/// What the child does: opens the store, or upgrades it and kills itself at the step that `DIE_AT` numbers.
#[test]
fn child() {
    let Ok(path) = std::env::var(PATH) else { return };
    let path = PathBuf::from(path);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    println!("\nopening");
    runtime.block_on(async {
        let Ok(die_at) = std::env::var(DIE_AT) else {
            return open(&path).await.map(drop).expect("opened");
        };
        let mut steps_left: u32 = die_at.parse().expect("a number");
        let _lock = StoreLock::acquire(&path).expect("locked");
        let found = recognise(&path).await.expect("ours");
        let mut connection = connect(&path).await.expect("connected");
        connection.lock_handle().await.expect("idle").set_progress_handler(1, move || {
            steps_left -= 1;
            if steps_left == 0 {
                let _ = kill_process(getpid(), Signal::KILL);
            }
            true
        });
        upgrade(&mut connection, &path, found).await.expect("upgraded");
        connection.close().await.expect("closed");
    });
}

fn command(path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", CHILD, "--nocapture", "--test-threads=1"]).env(PATH, path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// After a death: some whole version, then the newest one, with every grain as it was, and a whole copy.
async fn assert_goes_on(path: &Path, grains: &[OldGrain], when: &str) -> Recognised {
    let found = match fs_err::exists(path) {
        Ok(true) => recognise(path).await.unwrap_or_else(|error| panic!("{when}: {}", with_causes(&error))),
        _ => Recognised::Blank,
    };
    open(path).await.unwrap_or_else(|error| panic!("{when}, at {found:?}: {}", with_causes(&error))).close().await;
    assert!(read_grains(path).await == grains, "{when}");
    assert_eq!(scalar(path, "SELECT max(version) FROM schema_version").await, latest_version(), "{when}");
    assert_eq!(scalar(path, "SELECT count(*) FROM schema_version").await, latest_version() - 1, "{when}");
    let n_without_words = "SELECT count(*) FROM grains WHERE number NOT IN (SELECT id FROM grain_words_docsize)";
    assert_eq!(scalar(path, n_without_words).await, 0, "{when}");
    let copy = path.with_file_name(format!("granary.db.before-v{}", latest_version()));
    if !grains.is_empty() {
        assert!(read_grains(&copy).await == grains, "{when}");
    }
    let names = names_in(path.parent().expect("a folder"));
    assert!(!names.iter().any(|name| name.contains("partial") || name.contains("view")), "{when}: {names:?}");
    // An upgrade that had changed nothing yet leaves one copy, however often it is cut off.
    assert!(found != Recognised::Unrecorded(1) || !names.iter().any(|name| name.ends_with(".2")), "{when}: {names:?}");
    found
}

#[tokio::test]
async fn killed_at_every_statement() {
    // SQLite counts a step for about every token it parses and every row it copies: a statement that writes has more.
    const STRIDE: usize = 23;
    // Few, because every row that is copied is a step, too.
    let grains = &old_grains()[..4];
    let (_elsewhere, original) = folder();
    write_v1(&original, grains).await;
    let mut left = Vec::new();
    for step in (1..).step_by(STRIDE) {
        let (_folder, path) = folder();
        fs_err::copy(&original, &path).expect("copied");
        let status = command(&path).env(DIE_AT, step.to_string()).stdout(Stdio::null()).status().expect("run");
        if status.success() {
            break;
        }
        let found = assert_goes_on(&path, grains, &format!("killed at step {step}")).await;
        if !left.contains(&found) {
            left.push(found);
        }
    }
    assert_eq!(
        left,
        [
            Recognised::Unrecorded(1),
            Recognised::Recorded(1),
            Recognised::Recorded(2),
            Recognised::Recorded(3),
            Recognised::Recorded(4),
            Recognised::Recorded(5),
            Recognised::Recorded(6),
            Recognised::Recorded(7),
            Recognised::Recorded(8),
            Recognised::Recorded(9),
            Recognised::Recorded(10)
        ],
        "every version was left, and nothing else"
    );
}

/// Kills between statements and inside system calls, which no hook reaches: the whole open, swept in time.
async fn killed_in_time(original: Option<&Path>, grains: &[OldGrain]) {
    const DEATHS: u32 = 25;
    let prepared = || {
        let (folder, path) = folder();
        if let Some(original) = original {
            fs_err::copy(original, &path).expect("copied");
        }
        (folder, path)
    };
    let (_folder, path) = prepared();
    let mut whole = command(&path).spawn().expect("run");
    let (opening, _output) = wait_for_opening(&mut whole);
    assert!(whole.wait().expect("run").success());
    let duration = opening.elapsed();
    for n in 0..DEATHS {
        let (_folder, path) = prepared();
        let mut child = command(&path).spawn().expect("run");
        let _output = wait_for_opening(&mut child);
        let delay = duration * n / DEATHS;
        std::thread::sleep(delay);
        child.kill().expect("killed");
        child.wait().expect("dead");
        assert_goes_on(&path, grains, &format!("killed after {delay:?}")).await;
    }
}

/// The moment the child begins, and its output, which must stay open for as long as it lives.
fn wait_for_opening(child: &mut Child) -> (Instant, BufReader<ChildStdout>) {
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    output.by_ref().lines().map_while(Result::ok).find(|line| line == "opening").expect("the child opens");
    (Instant::now(), output)
}

#[tokio::test]
async fn killed_at_any_time_while_upgrading() {
    let (_elsewhere, original) = folder();
    write_v1(&original, &old_grains()).await;
    killed_in_time(Some(&original), &old_grains()).await;
}

#[tokio::test]
async fn killed_at_any_time_while_creating() {
    killed_in_time(None, &[]).await;
}

/// What the files of [`with_little_room`] may take.
const LITTLE_ROOM_BYTES: u64 = 512 << 10;

/// Runs the child, to which the kernel refuses to write past a limit, as it would on a full disk.
fn with_little_room(path: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        // The shell counts by half a KiB; the ignored signal makes the write fail instead of the process.
        .args(["-c", &format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", LITTLE_ROOM_BYTES / 512)])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", CHILD, "--nocapture", "--test-threads=1"])
        .env(PATH, path);
    command
}

/// The copy fails, the file is as it was.
#[tokio::test]
async fn without_room_for_the_copy_nothing_is_upgraded() {
    let (folder, path) = folder();
    write_v1(&path, &old_grains()).await;
    let before = fs_err::read(&path).expect("a file");
    let limited = with_little_room(&path).output().expect("run");
    assert!(!limited.status.success());
    let output = String::from_utf8_lossy(&limited.stderr).into_owned() + &String::from_utf8_lossy(&limited.stdout);
    assert!(output.contains("keep a copy of the database before upgrading it"), "{output}");
    assert!(fs_err::read(&path).expect("a file") == before);
    assert_eq!(names_in(folder.path()), ["granary.db", "granary.db.lock"]);

    let waited = Instant::now();
    open(&path).await.expect("upgraded once there is room").close().await;
    assert!(waited.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_log_that_a_crash_left_needs_no_room_for_a_copy() {
    let (_elsewhere, original) = folder();
    let (_folder, path) = folder();
    open(&original).await.expect("created").close().await;
    let options = SqliteConnectOptions::new().filename(&original).pragma("wal_autocheckpoint", "0");
    let mut connection = options.pragma("synchronous", "OFF").connect().await.expect("a connection");
    for epoch in 1..=300 {
        run(&mut connection, &format!("UPDATE identity SET epoch = '{epoch}'")).await;
    }
    copy_as_if_crashed(&original, &path);
    connection.close().await.expect("closed");
    let size_of = |suffix| fs_err::metadata(beside(&path, suffix)).expect("a file").len();
    assert!(size_of("-wal") > LITTLE_ROOM_BYTES && size_of("") < LITTLE_ROOM_BYTES);

    let output = with_little_room(&path).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(scalar(&path, "SELECT CAST(epoch AS INTEGER) FROM identity").await, 300, "the log counts");
}
