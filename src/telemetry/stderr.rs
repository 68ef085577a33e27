//! Standard error as the log uses it: whoever logs queues a line and goes on, and a thread of its own writes.
//!
//! A reader that stalls, one that has died or a full disk may cost lines of the log, and neither hold up nor end
//! anything else. Lines that too many others wait before, and lines that cannot be written, are lost and counted. The
//! crate `tracing-appender` is not used for this: where its guard cannot flush it says so with `println!`, which blocks
//! or panics in just this case.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::LOG_LINES_LOST;

/// The most that waits to be written: some ten thousand lines. As much again may be on its way.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// How long the end of the process waits for whoever reads the log.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// How long to wait for a reader where the system does not: another process may have set a terminal or a pipe that both
/// have to non-blocking.
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// The log of the process, once there is one.
static LOG: OnceLock<Arc<LogWriter>> = OnceLock::new();

/// Starts the thread that writes to standard error, and returns what it takes lines from.
///
/// # Errors
/// When there can be no thread.
pub(super) fn start() -> io::Result<Arc<LogWriter>> {
    let log = Arc::new(LogWriter::default());
    let of_thread = Arc::clone(&log);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || of_thread.write_to(Stderr))?;
    Ok(Arc::clone(LOG.get_or_init(|| log)))
}

/// Waits until what was logged is written, half a second at most. To be called wherever the process may end.
pub fn flush_log() {
    if let Some(log) = LOG.get() {
        log.wait_until_written(LAST_WAIT);
    }
}

/// Writes a line to standard error behind all that was logged, before the process ends. With a log it takes half a
/// second at most.
pub fn print_last(line: &str) {
    let line = format!("{line}\n");
    if let Some(log) = LOG.get() {
        log.push(line.as_bytes());
        flush_log();
    } else {
        // Where nobody listens, the status says it.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Lines on their way to where the log is written.
#[derive(Default)]
pub(super) struct LogWriter {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// The thread has not yet done with what it took.
    is_writing: bool,
    /// Lines that the log has not yet said to be missing.
    n_lost: usize,
}

impl LogWriter {
    fn push(&self, lines: &[u8]) {
        let mut queue = self.queue.lock();
        if queue.bytes.len() + lines.len() > MAX_QUEUED_BYTES {
            drop(queue);
            return self.lose(lines);
        }
        queue.bytes.extend_from_slice(lines);
        drop(queue);
        self.filled.notify_one();
    }

    fn lose(&self, lines: &[u8]) {
        let n_lines = lines_of(lines).count();
        self.queue.lock().n_lost += n_lines;
        metrics::counter!(LOG_LINES_LOST).increment(n_lines as u64);
    }

    fn wait_until_written(&self, at_most: Duration) {
        let mut queue = self.queue.lock();
        self.emptied.wait_while_for(&mut queue, |queue| queue.is_writing || !queue.bytes.is_empty(), at_most);
    }

    /// Writes, for ever. Line by line: other processes may have the same standard error, and one `write` of a few KiB
    /// is not torn apart by theirs.
    fn write_to(&self, mut out: impl Write) {
        let mut is_torn = false;
        loop {
            let taken = self.take();
            let mut got_through = false;
            for line in lines_of(&taken) {
                // What a full disk has taken of a line must not run into the next one.
                is_torn = is_torn && !left_of(b"\n", &mut out).is_empty();
                let left = if is_torn { line } else { left_of(line, &mut out) };
                got_through = left.is_empty();
                if !got_through {
                    is_torn |= left.len() < line.len();
                    self.lose(line);
                }
            }
            if got_through {
                self.tell_of_losses();
            }
        }
    }

    /// Waits for lines, and takes all there are. What was taken before is done with.
    fn take(&self) -> Vec<u8> {
        let mut queue = self.queue.lock();
        queue.is_writing = false;
        self.emptied.notify_all();
        self.filled.wait_while(&mut queue, |queue| queue.bytes.is_empty());
        queue.is_writing = true;
        mem::take(&mut queue.bytes)
    }

    /// Says in the log how much of it is missing. This only queues a line, as all logging does.
    fn tell_of_losses(&self) {
        let mut queue = self.queue.lock();
        // In a queue that is nearly full the line would be lost itself; there is another time, after what waits there.
        let has_room = queue.bytes.len() < MAX_QUEUED_BYTES / 2;
        let n_lost = if has_room { mem::take(&mut queue.n_lost) } else { 0 };
        drop(queue);
        if n_lost > 0 {
            tracing::warn!(n_lines = n_lost, "lines of the log before this one are lost: standard error took none");
        }
    }
}

impl Write for &LogWriter {
    /// Takes whole lines, and never fails.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines_of(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n')
}

/// Writes, and returns what could not be written.
fn left_of<'b>(mut bytes: &'b [u8], out: &mut impl Write) -> &'b [u8] {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(n_bytes @ 1..) => bytes = &bytes[n_bytes..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    bytes
}

/// Standard error without the lock that [`io::Stderr`] holds while it writes: where the reader stalls, whoever else
/// wanted to write there would wait for ever.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(io::stderr(), bytes) {
                Err(Errno::AGAIN) => std::thread::sleep(BETWEEN_TRIES),
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn start(out: impl Write + Send + 'static) -> Arc<LogWriter> {
        let log = Arc::new(LogWriter::default());
        let of_thread = Arc::clone(&log);
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::clone(&log)).finish();
        std::thread::spawn(move || tracing::subscriber::with_default(subscriber, || of_thread.write_to(out)));
        log
    }

    /// A disk with so much room.
    #[derive(Default)]
    struct Disk {
        room: usize,
        bytes: Vec<u8>,
    }

    #[derive(Clone, Default)]
    struct OnDisk(Arc<Mutex<Disk>>);

    impl Write for OnDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock();
            let n_bytes = bytes.len().min(disk.room);
            if n_bytes == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.room -= n_bytes;
            disk.bytes.extend_from_slice(&bytes[..n_bytes]);
            Ok(n_bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_lines_are_written_in_their_order() {
        let disk = OnDisk::default();
        disk.0.lock().room = usize::MAX;
        let log = start(disk.clone());
        let mut expected = String::new();
        for n in 0..10_000 {
            let line = format!("line {n}\n");
            log.push(line.as_bytes());
            expected += &line;
        }
        log.wait_until_written(LONG);
        assert_eq!(String::from_utf8_lossy(&disk.0.lock().bytes), expected);
    }

    #[test]
    fn who_logs_never_waits_and_the_log_says_what_it_has_lost() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let log = start(writer);
        let line = format!("{}\n", "a".repeat(1023));
        let n_logged = 3 * MAX_QUEUED_BYTES / line.len();
        for _ in 0..n_logged {
            log.push(line.as_bytes());
        }
        log.wait_until_written(Duration::from_millis(10));
        assert!(log.queue.lock().bytes.len() <= MAX_QUEUED_BYTES);

        for (n_read, read) in BufReader::new(reader).lines().enumerate() {
            let read = read.expect("a line");
            if let Some((words, n_lost)) = read.split_once(" n_lines=") {
                assert!(words.contains("WARN") && words.contains("before this one are lost"), "{read}");
                let n_lost: usize = n_lost.parse().expect("a number");
                assert!(n_read > 0 && n_lost > 0 && n_read + n_lost == n_logged, "{n_read} and {n_lost} of {n_logged}");
                return;
            }
            assert_eq!(read, line.trim_end());
        }
        panic!("the log does not say what it has lost");
    }

    #[test]
    fn what_a_full_disk_has_taken_of_a_line_does_not_run_into_the_next() {
        let disk = OnDisk::default();
        disk.0.lock().room = "first\nsec".len();
        let log = start(disk.clone());
        log.push(b"first\nsecond\nthird\n");
        log.wait_until_written(LONG);
        assert_eq!(String::from_utf8_lossy(&disk.0.lock().bytes), "first\nsec");

        disk.0.lock().room = usize::MAX;
        log.push(b"fourth\n");
        log.wait_until_written(LONG);
        let text = String::from_utf8_lossy(&disk.0.lock().bytes).into_owned();
        let rest = text.strip_prefix("first\nsec\nfourth\n").unwrap_or_else(|| panic!("{text}"));
        assert!(rest.trim_end().ends_with("n_lines=2"), "{text}");
    }
}
