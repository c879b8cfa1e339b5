//! S3 requests made by hand and sent over a bare socket: what an SDK would never send.
//!
//! Owns: signing by AWS Signature Version 4 (AWS's document "Authenticating Requests"), in the header and for the pieces of an
//! `aws-chunked` body. Absent: anything that would mend a broken request.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// For how long an answer is waited for: longer than any time-out of the door that a test waits for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const REGION: &str = "us-east-1";

/// A request before it is sent. Header names are in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    date: String,
    signature: String,
    breaks_off: bool,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status; 0 when the connection ended without one.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body, as text.
    pub body: String,
}

impl Answer {
    /// Returns the error code of an XML answer, or nothing.
    #[must_use]
    pub fn code(&self) -> &str {
        self.element("Code")
    }

    /// Returns the error message of an XML answer, or nothing.
    #[must_use]
    pub fn message(&self) -> &str {
        self.element("Message")
    }

    fn element(&self, name: &str) -> &str {
        let after = self.body.split_once(&format!("<{name}>"));
        let inside = after.and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
        inside.map_or("", |(text, _)| text)
    }
}

impl Request {
    /// Starts a request for a path and query as they go on the wire.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        let now = DateTime::from(now()).fmt(DateTimeFormat::DateTime);
        Self {
            method: method.into(),
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
            date: amz_date(&now.unwrap_or_default()),
            signature: String::new(),
            breaks_off: false,
        }
    }

    /// Signs for another time than now, given as in RFC 3339.
    #[must_use]
    pub fn at(mut self, time: &str) -> Self {
        self.date = amz_date(time);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body; its length goes into `content-length` when the request is sent, unless that is given.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Closes the sending side after the last byte, as a client does that dies.
    #[must_use]
    pub fn breaks_off(mut self) -> Self {
        self.breaks_off = true;
        self
    }

    /// Signs what has been given so far. Headers that are added later are not covered.
    #[must_use]
    pub fn sign(mut self, host: &str, (access_key, secret_key): (&str, &str)) -> Self {
        self.headers.push(("host".into(), host.into()));
        self.headers.push(("x-amz-date".into(), self.date.clone()));
        if self.value("x-amz-content-sha256").is_none() {
            let digest = hex::encode(Sha256::digest(&self.body));
            self.headers.push(("x-amz-content-sha256".into(), digest));
        }
        self.headers.sort();
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");
        let lines: String = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}:{}\n", value.trim()))
            .collect();
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                pair.split_once('=')
                    .map_or(format!("{pair}="), |_| pair.into())
            })
            .collect();
        pairs.sort();
        let payload = self.value("x-amz-content-sha256").unwrap_or_default();
        let canonical = format!(
            "{}\n{path}\n{}\n{lines}\n{names}\n{payload}",
            self.method,
            pairs.join("&")
        );
        let scope = self.scope();
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            self.date,
            hex::encode(Sha256::digest(canonical))
        );
        self.signature = hex::encode(hmac(&self.key(secret_key), &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={}",
            self.signature
        );
        self.header("authorization", &authorization)
    }

    /// Returns a piece of an `aws-chunked` body, signed after the piece before it (or the request itself).
    #[must_use]
    pub fn chunk(&self, secret_key: &str, before: Option<&str>, bytes: &[u8]) -> (Vec<u8>, String) {
        let before = before.unwrap_or(&self.signature);
        let to_sign = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{before}\n{}\n{}",
            self.date,
            self.scope(),
            hex::encode(Sha256::digest(b"")),
            hex::encode(Sha256::digest(bytes))
        );
        let signature = hex::encode(hmac(&self.key(secret_key), &to_sign));
        let mut piece = format!("{:x};chunk-signature={signature}\r\n", bytes.len()).into_bytes();
        piece.extend_from_slice(bytes);
        piece.extend_from_slice(b"\r\n");
        (piece, signature)
    }

    /// Sends the request and waits for the answer.
    ///
    /// # Errors
    /// When the node does not listen, or does not answer in time.
    pub fn send(&self, address: &str) -> anyhow::Result<Answer> {
        // The node may answer and close before it has read everything; its answer is what counts.
        let (sent, received, bytes) = self.exchange(address)?;
        if bytes.is_empty() {
            sent.context("sending")?;
            received.context("receiving")?;
        }
        Ok(answer(&bytes))
    }

    /// As [`Self::send`], like a client that looks for an answer only when it has sent its last byte.
    ///
    /// # Errors
    /// Also when the node does not take everything, or breaks the connection off.
    pub fn send_to_the_end(&self, address: &str) -> anyhow::Result<Answer> {
        let (sent, received, bytes) = self.exchange(address)?;
        sent.context("sending")?;
        received.context("receiving")?;
        Ok(answer(&bytes))
    }

    fn exchange(
        &self,
        address: &str,
    ) -> anyhow::Result<(io::Result<()>, io::Result<usize>, Vec<u8>)> {
        let mut stream = TcpStream::connect(address).context("connecting")?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.value("host").is_none() {
            head.push_str(&format!("host: {address}\r\n"));
        }
        if self.value("content-length").is_none() && self.value("transfer-encoding").is_none() {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("connection: close\r\n\r\n");
        let sent = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&self.body))
            .and_then(|()| match self.breaks_off {
                true => stream.shutdown(Shutdown::Write),
                false => Ok(()),
            });
        let mut bytes = Vec::new();
        let received = stream.read_to_end(&mut bytes);
        Ok((sent, received, bytes))
    }

    fn value(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    fn day(&self) -> &str {
        self.date.split('T').next().unwrap_or_default()
    }

    fn scope(&self) -> String {
        format!("{}/{REGION}/s3/aws4_request", self.day())
    }

    fn key(&self, secret_key: &str) -> Vec<u8> {
        let start = format!("AWS4{secret_key}").into_bytes();
        [self.day(), REGION, "s3", "aws4_request"]
            .iter()
            .fold(start, |key, part| hmac(&key, part))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a signature carries the time of the world outside"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// `2026-01-02T03:04:05.6Z` becomes `20260102T030405Z`.
fn amz_date(time: &str) -> String {
    let digits: String = time.chars().filter(|c| !"-:".contains(*c)).collect();
    let seconds = digits.split(['.', 'Z']).next().unwrap_or_default();
    format!("{seconds}Z")
}

fn answer(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or_default(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}
