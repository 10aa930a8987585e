//! Asking engines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::connect::connect;
use super::protocol::{FaceInfo, Line, MAX_REPLY, Reply, Request, VERSION};
use super::sockets::{directory, links_to, sockets_in};
use crate::stats::{Slabinfo, Stats};

/// The reason why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("nobody listens on {}: {}", .0.display(), .1)]
    Absent(PathBuf, #[source] std::io::Error),
    /// The socket belongs to another user.
    #[error("{} may not be used by this user", .0.display())]
    Denied(PathBuf),
    /// Somebody listens, who is not the owner of the directory.
    #[error("{} is served by a user whom it does not belong to", .0.display())]
    Impostor(PathBuf),
    /// No answer came in time.
    #[error("{} does not answer: {}", .0.display(), .1)]
    Silent(PathBuf, #[source] std::io::Error),
    /// The answer cannot be parsed: another version's, perhaps.
    #[error("{} gave an answer that cannot be read: {}", .0.display(), .1)]
    Garbled(PathBuf, String),
    /// The engine refused the request.
    #[error("{} refuses: {}", .0.display(), .1)]
    Refused(PathBuf, String),
}

/// A connection to an engine.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    patience: Duration,
}

impl Control {
    /// Connects to the engine that has the face `device` of user `uid`. Each answer may take `patience`.
    ///
    /// # Errors
    /// [`AskError::Absent`], [`AskError::Denied`], [`AskError::Impostor`].
    pub fn of_face(uid: u32, device: &str, patience: Duration) -> Result<Control, AskError> {
        let dir = directory(uid);
        if let Err(error) = std::fs::read_dir(&dir)
            && error.kind() == std::io::ErrorKind::PermissionDenied
        {
            return Err(AskError::Denied(dir));
        }
        let absent = std::io::Error::from(std::io::ErrorKind::NotFound);
        let mut last = AskError::Absent(dir.join(format!("*.face-{device}")), absent);
        for link in links_to(&dir, device) {
            match Control::open(&link, uid, patience) {
                // Left by a process that was killed.
                Err(error @ AskError::Absent(..)) => last = error,
                other => return other,
            }
        }
        // A link may be lost: then all are asked.
        for socket in sockets_in(&dir) {
            if let Ok(mut control) = Control::open(&socket, uid, patience)
                && control.faces().is_ok_and(|faces| faces.iter().any(|face| face.device == device))
            {
                return Ok(control);
            }
        }
        Err(last)
    }

    /// Connects to a socket that a process of user `uid` should serve.
    ///
    /// # Errors
    /// As [`Control::of_face`].
    pub fn open(path: &Path, uid: u32, patience: Duration) -> Result<Control, AskError> {
        let stream = connect(path, patience).map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => AskError::Denied(path.to_owned()),
            std::io::ErrorKind::WouldBlock => AskError::Silent(path.to_owned(), error),
            _ => AskError::Absent(path.to_owned(), error),
        })?;
        // Root asks in directories of users: a link there may lead to anybody's socket.
        let peer = rustix::net::sockopt::socket_peercred(&stream).map(|peer| peer.uid.as_raw());
        if !peer.is_ok_and(|peer| peer == uid) {
            return Err(AskError::Impostor(path.to_owned()));
        }
        Ok(Control { path: path.to_owned(), stream: BufReader::new(stream), patience })
    }

    fn ask(&mut self, request: Request) -> Result<Reply, AskError> {
        let garbled = |reason: String| AskError::Garbled(self.path.clone(), reason);
        let line = Line::encode(request).map_err(|error| garbled(error.to_string()))?;
        let line = self.exchange(&line).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                AskError::Silent(self.path.clone(), error)
            }
            // It has ended, or cut us off.
            _ => AskError::Absent(self.path.clone(), error),
        })?;
        let garbled = |reason: String| AskError::Garbled(self.path.clone(), reason);
        let line: Line<Reply> = serde_json::from_slice(&line).map_err(|error| garbled(error.to_string()))?;
        match line.body {
            _ if line.v != VERSION => Err(garbled(format!("it is of version {}", line.v))),
            Reply::Error(reason) => Err(AskError::Refused(self.path.clone(), reason)),
            reply => Ok(reply),
        }
    }

    /// Sends a line and receives one, all within the time.
    fn exchange(&mut self, line: &[u8]) -> std::io::Result<Vec<u8>> {
        let until = Instant::now() + self.patience;
        self.stream.get_mut().write_all(line)?;
        let mut reply = Vec::new();
        while !reply.ends_with(b"\n") {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || reply.len() >= MAX_REPLY {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let bytes = self.stream.fill_buf()?;
            if bytes.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let end = bytes.iter().position(|&b| b == b'\n').map_or(bytes.len(), |at| at + 1);
            reply.extend_from_slice(&bytes[..end]);
            self.stream.consume(end);
        }
        Ok(reply)
    }

    fn other(&self) -> AskError {
        AskError::Garbled(self.path.clone(), "it answers another question".to_owned())
    }

    /// The engine's faces.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn faces(&mut self) -> Result<Vec<FaceInfo>, AskError> {
        match self.ask(Request::Faces)? {
            Reply::Faces(faces) => Ok(faces),
            _ => Err(self.other()),
        }
    }

    /// The statistics of a face and of its engine.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn stats(&mut self, device: &str) -> Result<Stats, AskError> {
        match self.ask(Request::Stats { face: device.to_owned() })? {
            Reply::Stats(stats) => Ok(*stats),
            _ => Err(self.other()),
        }
    }

    /// The object caches of the engine's process.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn slabinfo(&mut self) -> Result<Slabinfo, AskError> {
        match self.ask(Request::Slabinfo)? {
            Reply::Slabinfo(info) => Ok(*info),
            _ => Err(self.other()),
        }
    }
}
