//! Who may come in: a program on this machine, not a web page that a browser on it shows.
//!
//! A page can reach loopback by a name of its own that resolves there (DNS rebinding), and open WebSockets across
//! origins. Both give themselves away by headers that a browser sets and a page cannot: `Host` and `Origin`.

use std::net::IpAddr;

use hyper::{HeaderMap, header};

use crate::config::secret::Secret;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the Host header must be localhost or an IP address: this port is not for names that a web page may own")]
    Host,
    #[error("a request from a web page (it has an Origin) is refused")]
    Origin,
    #[error("the token is missing or wrong: send it as `Authorization: Bearer` or `?token=`")]
    Token,
}

/// Lets a request in or says why not. `query` is the URL's.
pub fn check(headers: &HeaderMap, query: Option<&str>, token: Option<&Secret>) -> Result<(), Refused> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_local_name) {
        return Err(Refused::Host);
    }
    // DevTools' own front end comes from the browser itself.
    let origin = headers.get(header::ORIGIN).map(|origin| origin.as_bytes());
    if origin.is_some_and(|origin| !origin.starts_with(b"devtools://")) {
        return Err(Refused::Origin);
    }
    match token {
        Some(token) if !is_presented(token, headers, query) => Err(Refused::Token),
        _ => Ok(()),
    }
}

fn is_presented(token: &Secret, headers: &HeaderMap, query: Option<&str>) -> bool {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = header.and_then(|value| value.strip_prefix("Bearer "));
    let by_query = query.into_iter().flat_map(|query| query.split('&')).filter_map(given);
    bearer
        .into_iter()
        .chain(by_query)
        .any(|given| token.matches(given.as_bytes()))
}

/// What a part of a query gives as a token. It needs no decoding: ours has no character that would be encoded.
fn given(part: &str) -> Option<&str> {
    part.strip_prefix("token=")
}

/// A query without our token, which is nobody else's business.
pub fn without_token(query: &str, token: Option<&Secret>) -> String {
    let is_ours =
        |part: &&str| token.is_some_and(|token| given(part).is_some_and(|given| token.matches(given.as_bytes())));
    let parts: Vec<&str> = query.split('&').filter(|part| !is_ours(part)).collect();
    parts.join("&")
}

fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(key, value)| (header::HeaderName::from_static(key), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn names_are_refused_and_addresses_let_in() {
        for host in [
            "localhost",
            "localhost:9222",
            "LOCALHOST:1",
            "127.0.0.1:9222",
            "[::1]:9222",
            "10.0.0.7",
        ] {
            assert_eq!(check(&headers(&[("host", host)]), None, None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9222",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example:80",
        ] {
            assert_eq!(
                check(&headers(&[("host", host)]), None, None),
                Err(Refused::Host),
                "{host}"
            );
        }
        assert_eq!(check(&headers(&[]), None, None), Err(Refused::Host));
    }

    #[test]
    fn web_pages_are_refused() {
        for origin in ["https://evil.example", "null", "http://localhost:9222"] {
            let headers = headers(&[("host", "localhost"), ("origin", origin)]);
            assert_eq!(check(&headers, None, None), Err(Refused::Origin), "{origin}");
        }
        let devtools = headers(&[("host", "localhost"), ("origin", "devtools://devtools")]);
        assert_eq!(check(&devtools, None, None), Ok(()));
    }

    #[test]
    fn the_token_comes_by_header_or_query() {
        let token = Secret::new("secret-token".to_owned());
        let plain = headers(&[("host", "localhost")]);
        assert_eq!(check(&plain, None, Some(&token)), Err(Refused::Token));
        assert_eq!(
            check(&plain, Some("a=b&token=wrong"), Some(&token)),
            Err(Refused::Token)
        );
        assert_eq!(check(&plain, Some("a=b&token=secret-token"), Some(&token)), Ok(()));
        let bearer = headers(&[("host", "localhost"), ("authorization", "Bearer secret-token")]);
        assert_eq!(check(&bearer, None, Some(&token)), Ok(()));
        let wrong = headers(&[("host", "localhost"), ("authorization", "Bearer wrong")]);
        assert_eq!(check(&wrong, None, Some(&token)), Err(Refused::Token));
    }

    #[test]
    fn the_token_is_taken_out_and_a_pages_own_is_not() {
        let token = Secret::new("secret-token".to_owned());
        let query = "https://a.example/?a=1&token=theirs&token=secret-token";
        assert_eq!(
            without_token(query, Some(&token)),
            "https://a.example/?a=1&token=theirs"
        );
        assert_eq!(without_token(query, None), query);
        assert_eq!(without_token("token=secret-token", Some(&token)), "");
    }
}
