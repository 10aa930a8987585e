//! Requests and replies: one JSON object on a line each.
//!
//! ```text
//! → {"v":1,"get":"faces"}
//! ← {"v":1,"faces":[{"kind":"mount","at":"/mnt/build","device":"0:41"}]}
//! → {"v":1,"get":"stats","face":"0:41"}
//! ← {"v":1,"stats":{"pid":4711,"budget_bytes":536870912, …}}
//! → {"v":1,"get":"colour"}
//! ← {"v":1,"error":"unknown variant `colour`, …"}
//! ```
//! A later version may add requests, and fields to any object; it changes the number only when it changes a meaning.

use serde::{Deserialize, Serialize};

use crate::stats::{Slabinfo, Stats};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// Most bytes of a request, with its end of line. The server closes a connection that sends more.
pub const MAX_REQUEST: usize = 4096;

/// Most bytes of a reply. A client reads no further.
pub const MAX_REPLY: usize = 4 << 20;

/// A question to an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "get", rename_all = "lowercase")]
pub enum Request {
    /// The faces that are open.
    Faces,
    /// The statistics of a face and of its engine.
    Stats {
        /// The face's `device`.
        face: String,
    },
    /// The object caches of the process.
    Slabinfo,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// To [`Request::Faces`].
    Faces(Vec<FaceInfo>),
    /// To [`Request::Stats`].
    Stats(Box<Stats>),
    /// To [`Request::Slabinfo`].
    Slabinfo(Box<Slabinfo>),
    /// The reason why there is no other answer.
    Error(String),
}

/// A face of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaceInfo {
    /// Its kind.
    pub kind: FaceKind,
    /// Its place: a mountpoint, as its maker named it.
    pub at: String,
    /// Its device, `major:minor`: the same in every namespace.
    pub device: String,
}

/// The kinds of faces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaceKind {
    /// A mounted tmpfs.
    Mount,
    /// A kind that only a newer engine has.
    #[serde(other)]
    Other,
}

/// A request or a reply, with its version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line<T> {
    /// [`VERSION`].
    pub v: u32,
    /// The request or the reply.
    #[serde(flatten)]
    pub body: T,
}

impl<T: Serialize> Line<T> {
    /// The line, with its end.
    ///
    /// # Errors
    /// Never in practice: the types have no maps with other keys than text.
    pub fn encode(body: T) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Line { v: VERSION, body })?;
        line.push(b'\n');
        Ok(line)
    }
}

/// The request in a line; the reason if there is none.
pub(crate) fn parse_request(line: &[u8]) -> Result<Request, String> {
    // The version comes first: a later one may have any requests.
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let Version { v } = serde_json::from_slice(line).map_err(|error| format!("no request: {error}"))?;
    if v != VERSION {
        return Err(format!("version {v} is not spoken here; this is version {VERSION}"));
    }
    let line: Line<Request> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    Ok(line.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_documented() {
        let text = |body: Request| String::from_utf8(Line::encode(body).unwrap()).unwrap();
        assert_eq!(text(Request::Faces), "{\"v\":1,\"get\":\"faces\"}\n");
        let stats = Request::Stats { face: "0:41".to_owned() };
        assert_eq!(text(stats.clone()), "{\"v\":1,\"get\":\"stats\",\"face\":\"0:41\"}\n");
        assert_eq!(parse_request(br#"{"get":"stats","face":"0:41","v":1,"later":[]}"#), Ok(stats));
        let info = FaceInfo { kind: FaceKind::Mount, at: "/mnt/build".into(), device: "0:41".into() };
        let reply = String::from_utf8(Line::encode(Reply::Faces(vec![info.clone()])).unwrap()).unwrap();
        assert_eq!(
            reply,
            "{\"v\":1,\"faces\":[{\"kind\":\"mount\",\"at\":\"/mnt/build\",\"device\":\"0:41\"}]}\n"
        );
        let back: Line<Reply> = serde_json::from_str(&reply).unwrap();
        assert!(matches!(back.body, Reply::Faces(faces) if faces == [info]));
    }

    #[test]
    fn other_versions_and_garbage_are_refused_with_the_reason() {
        for (line, reason) in [
            (&br#"{"v":2,"get":"faces"}"#[..], "version 2"),
            (br#"{"v":1,"get":"colour"}"#, "colour"),
            (br#"{"v":1}"#, "get"),
            (br#"{"get":"faces"}"#, "`v`"),
            (b"", "no request"),
            (b"\xff\xfe", "no request"),
            (b"[[[[[[[[", "no request"),
        ] {
            let error = parse_request(line).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
