//! Where Redis is and how it is spoken to: one server, the master that Sentinels name, or a cluster. Forms are checked
//! here, before any connection.

use percent_encoding::percent_decode_str;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    TlsCertificates,
};

use crate::queue::QueueError;
use crate::queue::redis_options::{RedisOptions, redact};

const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// Most hosts of one URL.
const MAX_HOSTS: usize = 32;
const FORMS: &str = "redis://[[user]:password@]host[:port][/db], rediss://... with TLS, redis+unix:///path, \
                     redis+sentinel://host[:port],host.../master[/db] or redis+cluster://host[:port],host...";

/// What a URL stands for.
#[derive(Clone)]
pub(super) enum Place {
    /// One server.
    Server(ConnectionInfo),
    /// The master the Sentinels know by this name; the server's address is to be filled in.
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String, server: ConnectionInfo },
    /// The nodes a cluster is found by.
    Cluster { seeds: Vec<ConnectionInfo> },
}

impl Place {
    /// Reads the options.
    pub(super) fn of(options: &RedisOptions) -> Result<Self, QueueError> {
        Self::parse(options).map_err(|why| {
            QueueError::Invalid(format!("the Redis URL {}: {why}; expected {FORMS}", redact(&options.url)))
        })
    }

    fn parse(options: &RedisOptions) -> Result<Self, String> {
        let url = options.url.as_str();
        let (scheme, rest) = url.split_once("://").ok_or("it has no scheme")?;
        if url.contains('#') {
            return Err("it contains #, which is written %23 in a password".to_owned());
        }
        let tls = scheme.starts_with("rediss") || scheme == "valkeys";
        if !tls && (options.tls.ca.is_some() || options.tls.client.is_some()) {
            return Err("certificates are given, but this is no URL for TLS".to_owned());
        }
        match scheme {
            "redis" | "rediss" | "valkey" | "valkeys" => Ok(Self::Server(single(url, &["protocol"], options)?)),
            "unix" | "redis+unix" | "valkey+unix" => {
                Ok(Self::Server(single(url, &["protocol", "db", "user", "pass"], options)?))
            }
            "redis+sentinel" | "rediss+sentinel" => Self::sentinel(&Parts::of(rest, tls)?, options),
            "redis+cluster" | "rediss+cluster" => Self::cluster(&Parts::of(rest, tls)?, options),
            _ => Err(format!("{:?} is no scheme it can have", scheme.chars().take(40).collect::<String>())),
        }
    }

    fn sentinel(parts: &Parts<'_>, options: &RedisOptions) -> Result<Self, String> {
        let (master, db) = parts.path.split_once('/').unwrap_or((parts.path, ""));
        let master = decode(master)?;
        if master.is_empty() {
            return Err("the name of the master is missing".to_owned());
        }
        let (mut user, mut password, mut other) = (None, None, Vec::new());
        for parameter in parts.query.split('&').filter(|text| !text.is_empty()) {
            match parameter.split_once('=') {
                Some(("sentinel_username", text)) => user = Some(decode(text)?),
                Some(("sentinel_password", text)) => password = Some(decode(text)?),
                _ => other.push(parameter),
            }
        }
        let query = other.join("&");
        let mut sentinels = Vec::new();
        for host in parts.hosts(SENTINEL_PORT)? {
            let info = single(&parts.url("", &host, "", &query), &["protocol"], options)?;
            let mut auth = RedisConnectionInfo::default().set_protocol(info.redis_settings().protocol());
            if let Some(user) = &user {
                auth = auth.set_username(user);
            }
            if let Some(password) = &password {
                auth = auth.set_password(password);
            }
            sentinels.push(info.set_redis_settings(auth));
        }
        // The host is a stand-in: the Sentinels will name the right one.
        let server = single(&parts.url(parts.user, "sentinel", db, &query), &["protocol"], options)?;
        Ok(Self::Sentinel { sentinels, master, server })
    }

    fn cluster(parts: &Parts<'_>, options: &RedisOptions) -> Result<Self, String> {
        if !matches!(parts.path, "" | "0") {
            return Err("a cluster has no database but 0".to_owned());
        }
        let url = |host: String| single(&parts.url(parts.user, &host, "", parts.query), &["protocol"], options);
        let seeds = parts.hosts(SERVER_PORT)?.into_iter().map(url).collect::<Result<_, _>>()?;
        Ok(Self::Cluster { seeds })
    }
}

/// The same server settings at another address.
pub(super) fn at(server: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let addr = match server.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    server.clone().set_addr(addr)
}

/// `host:port`, `[v6]:port` or, as Redis itself writes it, `v6:port`.
pub(super) fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    // `host:port@bus,name` is how nodes list themselves.
    let port = port.split('@').next()?.parse().ok()?;
    Some((host.trim_start_matches('[').trim_end_matches(']'), port))
}

/// A URL with several hosts, taken apart.
struct Parts<'a> {
    tls: bool,
    /// With the sign behind it, or empty.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str, tls: bool) -> Result<Self, String> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        if hosts.is_empty() {
            return Err("it names no host".to_owned());
        }
        Ok(Self { tls, user, hosts, path: path.trim_end_matches('/'), query })
    }

    fn hosts(&self, port: u16) -> Result<Vec<String>, String> {
        let hosts: Vec<String> = self
            .hosts
            .split(',')
            .map(|host| {
                let name_ends = host.rfind(']').unwrap_or(0);
                if host[name_ends..].contains(':') { host.to_owned() } else { format!("{host}:{port}") }
            })
            .collect();
        if hosts.iter().any(|host| host.starts_with(':')) {
            return Err("a host between the commas is missing".to_owned());
        }
        if hosts.len() > MAX_HOSTS { Err(format!("it has more than {MAX_HOSTS} hosts")) } else { Ok(hosts) }
    }

    /// The URL of one of the hosts.
    fn url(&self, user: &str, host: &str, db: &str, query: &str) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://{user}{host}/{db}{}{query}", if query.is_empty() { "" } else { "?" })
    }
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "a part of it is not UTF-8")?;
    Ok(text.into_owned())
}

/// One server, read by the client library. Its own words are left out where they might quote the URL.
fn single(url: &str, known: &[&str], options: &RedisOptions) -> Result<ConnectionInfo, String> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for parameter in query.split('&').filter(|text| !text.is_empty()) {
        let name = parameter.split('=').next().unwrap_or_default();
        if !known.contains(&name) {
            return Err(format!("it has a parameter other than {}", known.join(", ")));
        }
    }
    let words = |error: &RedisError| match error.to_string() {
        text if text.contains("database") => "the database is not a number".to_owned(),
        text if text.contains("wildcard") => "nobody can connect to a wildcard address".to_owned(),
        text if text.contains("protocol") => "the protocol is neither 2 nor 3".to_owned(),
        _ => "host, port or a part of it cannot be read".to_owned(),
    };
    let mut info = url.into_connection_info().map_err(|error| words(&error))?;
    if info.redis_settings().db() < 0 {
        return Err("the database is below 0".to_owned());
    }
    if !query.contains("protocol=") {
        // RESP3 tells at once when a connection is lost, so that nobody has to ask before each use.
        let settings = info.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP3);
        info = info.set_redis_settings(settings);
    }
    if options.tls.ca.is_none() && options.tls.client.is_none() {
        return Ok(info);
    }
    let pem = |bytes: &[u8]| bytes.windows(11).any(|window| window == b"-----BEGIN ");
    let texts = options.tls.ca.iter().chain(options.tls.client.iter().flat_map(|(cert, key)| [cert, key]));
    if !texts.into_iter().all(|text| pem(text)) {
        return Err("its certificates cannot be read: PEM files are expected".to_owned());
    }
    let certificates = TlsCertificates {
        client_tls: options
            .tls
            .client
            .clone()
            .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
        root_cert: options.tls.ca.clone(),
    };
    match Client::build_with_tls(info, certificates) {
        Ok(client) => Ok(client.get_connection_info().clone()),
        Err(_) => Err("its certificates cannot be read: PEM files are expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<Place, QueueError> {
        Place::of(&RedisOptions::new(url))
    }

    #[test]
    fn every_form_is_understood() {
        for url in [
            "redis://h",
            "redis://:p%40w@h:1/3",
            "rediss://user:pw@h:6380/0",
            "redis+unix:///run/redis.sock?db=1&pass=x",
            "redis://[::1]:6379",
            "redis://h/?protocol=2",
        ] {
            assert!(matches!(place(url), Ok(Place::Server(_))), "{url}");
        }
        let Ok(Place::Sentinel { sentinels, master, server }) =
            place("redis+sentinel://me:pw@a,b:7,[::1]/my%2Fmaster/2?sentinel_password=s%26x&sentinel_username=u")
        else {
            panic!("a Sentinel's URL")
        };
        let addresses: Vec<String> = sentinels.iter().map(|info| info.addr().to_string()).collect();
        assert_eq!(addresses, ["a:26379", "b:7", "::1:26379"]);
        assert_eq!(sentinels[0].redis_settings().password(), Some("s&x"));
        assert_eq!(sentinels[0].redis_settings().username(), Some("u"));
        assert_eq!((master.as_str(), server.redis_settings().db()), ("my/master", 2));
        assert_eq!(server.redis_settings().password(), Some("pw"));
        assert_eq!(at(&server, "m", 9).addr().to_string(), "m:9");

        let Ok(Place::Cluster { seeds }) = place("rediss+cluster://:pw@a:1,b") else { panic!("a cluster's URL") };
        assert_eq!(seeds.len(), 2);
        assert!(seeds.iter().all(|seed| matches!(seed.addr(), ConnectionAddr::TcpTls { .. })));
        assert!(seeds.iter().all(|seed| seed.redis_settings().password() == Some("pw")));
    }

    #[test]
    fn wrong_forms_are_named_and_secrets_are_not_shown() {
        for (url, why) in [
            ("hunter2", "scheme"),
            ("http://:hunter2@h", "scheme"),
            ("redis://:hunter2@h:notaport", "port"),
            ("redis://:hunter2@h/zero", "database"),
            ("redis://:hunter2@h/-1", "database"),
            ("redis://:hunt#er2@h", "%23"),
            ("redis://h/?pass=hunter2", "parameter"),
            ("redis://:a?hunter2@h", "parameter"),
            ("redis://0.0.0.0", "wildcard"),
            ("redis+sentinel://:hunter2@a,b", "name of the master"),
            ("redis+sentinel://:hunter2@/m", "host"),
            ("redis+sentinel://:hunter2@a,,b/m", "host between"),
            ("redis+sentinel://:hunter2@a/m/x", "database"),
            ("redis+cluster://:hunter2@a/1", "no database"),
            ("redis+cluster://:hunter2@a:x", "port"),
            ("redis+cluster://a?sentinel_password=hunter2", "parameter"),
        ] {
            let error = place(url).map(drop).expect_err(url).to_string();
            assert!(error.contains(why), "{url}: {error}");
            let shown = format!("{error} {:?}", RedisOptions::new(url));
            assert!(!shown.contains("hunter2") && !shown.contains("er2@") && !shown.contains(":a?"), "{shown}");
        }
        let mut options = RedisOptions::new("redis://h");
        options.tls.ca = Some(b"x".to_vec());
        assert!(options.check().expect_err("no TLS").to_string().contains("no URL for TLS"));
        options.url = "rediss://h".to_owned();
        assert!(options.check().expect_err("no PEM").to_string().contains("PEM"));
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        assert_eq!(redact("redis://:x@h:1/0"), "redis://***@h:1/0");
        assert_eq!(redact("redis://h:1/0"), "redis://h:1/0");
        assert_eq!(redact("redis+sentinel://:x@a,b/m?sentinel_password=y"), "redis+sentinel://***@a,b/m");
        assert_eq!(redact("redis://:x?y@h"), "redis://***");
        assert_eq!(redact("redis+unix:///s?pass=x"), "redis+unix:///s");
    }

    #[test]
    fn addresses_of_redis_are_read() {
        assert_eq!(split_address("127.0.0.1:6379"), Some(("127.0.0.1", 6379)));
        assert_eq!(split_address("[::1]:6379"), Some(("::1", 6379)));
        assert_eq!(split_address("fe80::1:6379"), Some(("fe80::1", 6379)));
        assert_eq!(split_address(":6379"), Some(("", 6379)));
        assert_eq!(split_address("nowhere"), None);
    }
}
