//! AWS Signature Version 4 for requests whose payload is not signed (S3 API reference, "Authenticating Requests").

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// What stands in for the payload's hash.
pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const REGION: &str = "us-east-1";

/// Signs for one access key on one day.
pub(crate) struct Signer {
    access_key: String,
    secret_key: String,
    host: String,
    day: String,
    key: [u8; 32],
}

/// The headers of a signed request.
pub(crate) struct Signed {
    pub(crate) date: String,
    pub(crate) authorization: String,
}

impl Signer {
    pub(crate) fn new(access_key: &str, secret_key: &str, host: &str) -> Self {
        Self {
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            host: host.into(),
            day: String::new(),
            key: [0; 32],
        }
    }

    /// Signs a request at `now_ns`. `path` and `query` are encoded already, the query's pairs in order.
    pub(crate) fn sign(&mut self, now_ns: i64, method: &str, path: &str, query: &str) -> Signed {
        let date = timestamp(now_ns);
        if !date.starts_with(&self.day) || self.day.is_empty() {
            self.day = date[..8].to_owned();
            let mut key = hmac(
                format!("AWS4{}", self.secret_key).as_bytes(),
                self.day.as_bytes(),
            );
            for part in [REGION, "s3", "aws4_request"] {
                key = hmac(&key, part.as_bytes());
            }
            self.key = key;
        }
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{UNSIGNED}\nx-amz-date:{date}\n\n\
             host;x-amz-content-sha256;x-amz-date\n{UNSIGNED}",
            self.host
        );
        let scope = format!("{}/{REGION}/s3/aws4_request", self.day);
        let hash = hex::encode(Sha256::digest(canonical.as_bytes()));
        let signature = hmac(
            &self.key,
            format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}").as_bytes(),
        );
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature={}",
            self.access_key,
            hex::encode(signature)
        );
        Signed {
            date,
            authorization,
        }
    }
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// Returns the time as `YYYYMMDDThhmmssZ`. The calendar counts years from March, so that the leap day is the last.
fn timestamp(now_ns: i64) -> String {
    let seconds = now_ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let days = days + 719_468; // from the epoch back to March 1 of year 0
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{:02}Z",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_is_right() {
        let cases = [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_582_934_400, "20200229T000000Z"),
            (1_735_689_599, "20241231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(timestamp(seconds * 1_000_000_000), text);
        }
    }

    #[test]
    fn the_key_follows_the_day() {
        let mut signer = Signer::new("AK", "secret", "127.0.0.1:1");
        let first = signer.sign(0, "GET", "/b/k", "");
        let again = signer.sign(0, "GET", "/b/k", "");
        assert_eq!(first.authorization, again.authorization);
        let next_day = signer.sign(86_400_000_000_000, "GET", "/b/k", "");
        assert!(
            next_day.authorization.contains("19700102/us-east-1/s3/"),
            "{}",
            next_day.authorization
        );
        assert_ne!(signer.sign(0, "GET", "/b/other", "").date, "");
    }
}
