//! The control socket's server: one thread, which sleeps until somebody asks.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connect::connect;
use super::protocol::{FaceInfo, Line, MAX_REPLY, MAX_REQUEST, Reply, Request, parse_request};
use super::sockets::{is_link, link_name, make_directory, sockets_in};

/// Connections at once; for one more the one that was silent for longest is closed.
const CONNECTIONS: usize = 16;

/// A connection that neither asks nor reads for so long is closed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers requests.
pub(crate) type Answer = Box<dyn Fn(&Request) -> Reply + Send>;

/// A listening socket and its thread. Dropping it removes both.
pub(crate) struct Server {
    path: PathBuf,
    /// Closed to stop the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens in this user's directory, after removing sockets that dead processes left there.
    pub(crate) fn start(answer: Answer) -> io::Result<Server> {
        Server::start_in(&make_directory(rustix::process::geteuid().as_raw())?, answer)
    }

    fn start_in(dir: &Path, answer: Answer) -> io::Result<Server> {
        remove_dead(dir);
        let path = dir.join(format!("{}.sock", std::process::id()));
        let listener = listen(&path)?;
        let (stop, stopped) = UnixStream::pair()?;
        let spare = stopped.try_clone().ok();
        let mut serve = Serve { listener, connections: Vec::new(), answer, spare };
        let thread = overspill_sys::process::spawn_or_die("control", move || serve.run(&stopped))?;
        Ok(Server { path, stop: Some(stop), thread: Some(thread) })
    }

    /// Makes the link by which a face's socket is found. None if that fails: the face is still found, by asking all.
    pub(crate) fn link(&self, face: &FaceInfo) -> Option<PathBuf> {
        let link = self.path.with_file_name(link_name(std::process::id(), &face.device));
        let target = self.path.file_name()?;
        std::os::unix::fs::symlink(target, &link)
            .inspect_err(
                |error| tracing::warn!(%error, path = %link.display(), "no link to the control socket"),
            )
            .ok()?;
        Some(link)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.stop = None;
        // An answer that holds the last handle to its engine runs this on the thread itself.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// A socket under this name. It has the name only once it listens: until then it would seem to be a dead one.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let unborn = path.with_extension("new");
    let _ = std::fs::remove_file(&unborn);
    let listener = UnixListener::bind(&unborn)?;
    // Nobody else can reach it before: the directory is closed to others.
    std::fs::set_permissions(&unborn, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| std::fs::rename(&unborn, path))
        .inspect_err(|_| drop(std::fs::remove_file(&unborn)))?;
    Ok(listener)
}

/// Removes sockets on which nobody listens, and links to them.
fn remove_dead(dir: &Path) {
    for path in sockets_in(dir) {
        let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
        // Within a moment: the process may be stopped, and its queue full.
        if connect(&path, Duration::from_secs(1)).is_err_and(refused) {
            let _ = std::fs::remove_file(&path);
        }
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_link(&entry.file_name()) && !entry.path().exists() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

struct Serve {
    listener: UnixListener,
    connections: Vec<Connection>,
    answer: Answer,
    /// A descriptor to give up for a connection where the process may open no more.
    spare: Option<UnixStream>,
}

/// The pause where not even the spare descriptor is left.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

impl Serve {
    fn run(&mut self, stopped: &UnixStream) {
        loop {
            let ready = match self.wait(stopped) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::warn!(%error, "the control socket does not wait");
                    std::thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            if ready.stopped {
                return;
            }
            let now = Instant::now();
            let answer = &self.answer;
            let mut readiness = ready.connections.into_iter();
            self.connections.retain_mut(|connection| {
                let ready = readiness.next().unwrap_or(false);
                if ready { connection.go_on(answer, now) } else { now < connection.until }
            });
            self.spare = self.spare.take().or_else(|| stopped.try_clone().ok());
            if ready.listener {
                self.accept(now);
            }
        }
    }

    /// Waits until somebody asks, can take more of a reply, or was silent for too long.
    fn wait(&self, stopped: &UnixStream) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(self.connections.iter().map(|c| PollFd::from_borrowed_fd(c.stream.as_fd(), c.interest())));
        let first = self.connections.iter().map(|c| c.until).min();
        let left =
            first.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let (stopped, listener) = (ready.next() == Some(true), ready.next() == Some(true));
        Ok(Ready { stopped, listener, connections: ready.collect() })
    }

    fn accept(&mut self, now: Instant) {
        let uid = rustix::process::geteuid().as_raw();
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_one_of(&error, &[Errno::MFILE, Errno::NFILE]) => {
                    if self.spare.take().is_none() {
                        std::thread::sleep(NO_DESCRIPTORS);
                        return;
                    }
                    continue;
                }
                Err(_) => return,
            };
            let peer = rustix::net::sockopt::socket_peercred(&stream).map(|peer| peer.uid.as_raw());
            let is_allowed = peer.is_ok_and(|peer| peer == 0 || peer == uid);
            if is_allowed && stream.set_nonblocking(true).is_ok() {
                if self.connections.len() == CONNECTIONS {
                    // The one that was silent for longest makes room.
                    let oldest = (0..CONNECTIONS).min_by_key(|&i| self.connections[i].until);
                    oldest.map(|oldest| self.connections.swap_remove(oldest));
                }
                let (request, reply) = (Vec::new(), Vec::new());
                self.connections.push(Connection { stream, request, reply, sent: 0, until: now + PATIENCE });
            }
        }
    }
}

fn is_one_of(error: &io::Error, errnos: &[Errno]) -> bool {
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[derive(Default)]
struct Ready {
    stopped: bool,
    listener: bool,
    connections: Vec<bool>,
}

struct Connection {
    stream: UnixStream,
    /// The part of a request that has come.
    request: Vec<u8>,
    /// The reply that is being sent, and how much of it was.
    reply: Vec<u8>,
    sent: usize,
    until: Instant,
}

impl Connection {
    fn interest(&self) -> PollFlags {
        if self.reply.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Sends, or else receives and answers. False if the connection is over.
    fn go_on(&mut self, answer: &Answer, now: Instant) -> bool {
        self.until = now + PATIENCE;
        let went = if self.reply.is_empty() {
            self.receive(answer)
        } else {
            self.send().and_then(|open| if open { self.answer_all(answer) } else { Ok(false) })
        };
        match went {
            Ok(open) => open,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    fn receive(&mut self, answer: &Answer) -> io::Result<bool> {
        let mut bytes = [0; MAX_REQUEST];
        let room = MAX_REQUEST - self.request.len();
        let n = self.stream.read(&mut bytes[..room])?;
        self.request.extend_from_slice(&bytes[..n]);
        if n == 0 {
            return Ok(false);
        }
        if !self.request.contains(&b'\n') && self.request.len() == MAX_REQUEST {
            self.say(Reply::Error(format!("a request has at most {MAX_REQUEST} bytes")));
            let _ = self.send();
            return Ok(false);
        }
        self.answer_all(answer)
    }

    /// Answers the requests that have come, one after the other, as far as their replies can be sent now.
    fn answer_all(&mut self, answer: &Answer) -> io::Result<bool> {
        while self.reply.is_empty()
            && let Some(end) = self.request.iter().position(|&b| b == b'\n')
        {
            let line: Vec<u8> = self.request.drain(..=end).collect();
            let reply = match parse_request(&line) {
                Ok(request) => answer(&request),
                Err(reason) => Reply::Error(reason),
            };
            self.say(reply);
            if !self.send()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn say(&mut self, reply: Reply) {
        let too_long = || Reply::Error(format!("the reply has more than {MAX_REPLY} bytes"));
        let line = Line::encode(reply).unwrap_or_default();
        let fits = !line.is_empty() && line.len() <= MAX_REPLY;
        self.reply = if fits { line } else { Line::encode(too_long()).unwrap_or_default() };
        self.sent = 0;
    }

    fn send(&mut self) -> io::Result<bool> {
        while self.sent < self.reply.len() {
            // Rust ignores SIGPIPE: a reader that has gone is an error.
            match self.stream.write(&self.reply[self.sent..])? {
                0 => return Ok(false),
                n => self.sent += n,
            }
        }
        self.reply.clear();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};

    fn server(dir: &Path) -> Server {
        let answer = |request: &Request| match request {
            Request::Faces => Reply::Faces(Vec::new()),
            Request::Stats { face } => Reply::Error(face.repeat(MAX_REPLY / face.len())),
            Request::Slabinfo => Reply::Error("x".repeat(3 << 20)),
        };
        Server::start_in(dir, Box::new(answer)).unwrap()
    }

    fn ask(stream: &UnixStream, line: &str) -> String {
        (&*stream).write_all(line.as_bytes()).unwrap();
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).unwrap();
        reply
    }

    #[test]
    fn one_connection_asks_several_times_and_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path());
        let stream = UnixStream::connect(&server.path).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&stream, "{\"v\":1,\"get\":\"faces\"}\n"), "{\"v\":1,\"faces\":[]}\n");
        }
        (&stream).write_all(b"{\"v\":1,").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(ask(&stream, "\"get\":\"faces\"}\n"), "{\"v\":1,\"faces\":[]}\n");
        assert!(ask(&stream, "nonsense\n").contains("error"));
        let two = "{\"v\":1,\"get\":\"faces\"}\n";
        (&stream).write_all(two.repeat(2).as_bytes()).unwrap();
        let mut lines = BufReader::new(&stream).lines();
        assert!((0..2).all(|_| lines.next().unwrap().unwrap().contains("faces")), "two in one packet");
    }

    #[test]
    fn long_replies_arrive_whole_and_too_long_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path());
        let stream = UnixStream::connect(&server.path).unwrap();
        assert_eq!(
            ask(&stream, "{\"v\":1,\"get\":\"slabinfo\"}\n").len(),
            (3 << 20) + "{\"v\":1,\"error\":\"\"}\n".len()
        );
        let refused = ask(&stream, "{\"v\":1,\"get\":\"stats\",\"face\":\"x\"}\n");
        assert!(refused.contains("more than"), "{}", refused.len());
    }

    #[test]
    fn a_request_without_end_is_cut_off_and_others_still_served() {
        let dir = tempfile::tempdir().unwrap();
        let server = server(dir.path());
        let long = UnixStream::connect(&server.path).unwrap();
        assert!(ask(&long, &"x".repeat(MAX_REQUEST)).contains("at most 4096"));
        assert_eq!((&long).read(&mut [0; 8]).unwrap(), 0, "closed");
        let idle: Vec<_> = (0..CONNECTIONS - 1).map(|_| UnixStream::connect(&server.path).unwrap()).collect();
        let stream = UnixStream::connect(&server.path).unwrap();
        assert_eq!(ask(&stream, "{\"v\":1,\"get\":\"faces\"}\n"), "{\"v\":1,\"faces\":[]}\n");
        drop(idle);
        drop(server);
        assert!(dir.path().read_dir().unwrap().next().is_none(), "the socket is gone");
    }

    #[test]
    fn links_name_the_socket_and_leftovers_of_the_dead_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join("1.sock")).unwrap());
        std::os::unix::fs::symlink("1.sock", dir.path().join("1.face-0:1")).unwrap();
        let server = server(dir.path());
        let face =
            FaceInfo { kind: super::super::protocol::FaceKind::Mount, at: "/m".into(), device: "0:2".into() };
        let link = server.link(&face).unwrap();
        assert_eq!(super::super::sockets::links_to(dir.path(), "0:2"), std::slice::from_ref(&link));
        assert!(UnixStream::connect(&link).is_ok());
        assert!(!dir.path().join("1.sock").exists());
        assert!(dir.path().join("1.face-0:1").symlink_metadata().is_err());
        let mode = std::fs::metadata(&server.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
