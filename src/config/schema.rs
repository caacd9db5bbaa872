//! The JSON schema of `proxy.yaml`, for editors. Its keys are the very tables that the readers go by; what each key
//! takes is described here, and a test sees that no key is left without a description.

use serde_json::{Map, Value, json};

use super::oauth::{self, Cloud, Provider};
use super::proxy;
use super::resolve::{
    ACCOUNT_KEYS, ADMIN_KEYS, GUARD_KEYS, LIMIT_KEYS, LISTENER_KEYS, LOG_KEYS, RUN_KEYS, TLS_KEYS,
    TOKEN_KEYS, TOP_KEYS,
};

/// The schema, in JSON Schema 2020-12.
pub fn schema() -> Value {
    let mut whole = section("", &TOP_KEYS);
    if let Some(fields) = whole.as_object_mut() {
        fields.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        fields.insert("title".to_owned(), json!("proxy.yaml, the configuration of Mailkey"));
        fields.insert("required".to_owned(), json!(["listeners"]));
    }
    whole
}

/// A section with these keys and no others.
fn section(name: &str, keys: &[&str]) -> Value {
    let mut properties = Map::new();
    for &key in keys {
        properties.insert(key.to_owned(), property(name, key).unwrap_or_else(|| json!({})));
    }
    json!({"type": ["object", "null"], "properties": properties, "additionalProperties": false})
}

/// What a key takes; `None`: nobody has said so yet.
fn property(name: &str, key: &str) -> Option<Value> {
    let (mut value, description) = match name {
        "" => top(key)?,
        "listeners" => listener(key)?,
        "accounts" => account(key).or_else(|| oauth(key))?,
        "oauth" => oauth(key)?,
        "outbound-proxy" => outbound_proxy(key)?,
        _ => small(name, key)?,
    };
    if let Some(fields) = value.as_object_mut() {
        fields.insert("description".to_owned(), json!(description));
    }
    Some(value)
}

fn top(key: &str) -> Option<(Value, &'static str)> {
    let or_off = |section: Value| json!({"anyOf": [section, {"enum": ["off", "none"]}]});
    Some(match key {
        "oauth" => (section("oauth", &oauth::KEYS), "the Entra application: what every account inherits"),
        "listeners" => {
            let one = required(section("listeners", &LISTENER_KEYS), &["name", "protocol", "listen"]);
            let list = json!({"type": "array", "minItems": 1, "items": one});
            (list, "where mail clients connect, and where that leads")
        }
        "accounts" => {
            let keys: Vec<&str> = ACCOUNT_KEYS.iter().chain(&oauth::KEYS).copied().collect();
            let one = required(section("accounts", &keys), &["user"]);
            (json!({"type": ["array", "null"], "items": one}), "who is who; the first match wins")
        }
        "accounts-only" => (flag(), "nobody but `accounts` gets in"),
        "outbound-proxy" => {
            let one = one_or_more(&section("outbound-proxy", &proxy::KEYS));
            (or_off(one), "the corporate proxy, a list of them, or `off`")
        }
        "tls" => (section("tls", &TLS_KEYS), "certificates and roots"),
        "tokens" => (section("tokens", &TOKEN_KEYS), "where tokens are kept"),
        "guard" => (section("guard", &GUARD_KEYS), "keeps wrong passwords from locking users out of Entra"),
        "limits" => (section("limits", &LIMIT_KEYS), "bounds"),
        "admin" => (or_off(section("admin", &ADMIN_KEYS)), "status page, health and metrics, or `off`"),
        "log" => (section("log", &LOG_KEYS), "log output, on standard error"),
        "run" => (section("run", &RUN_KEYS), "the process"),
        _ => return None,
    })
}

fn listener(key: &str) -> Option<(Value, &'static str)> {
    Some(match key {
        "name" => (
            json!({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}),
            "shown in logs, metrics and on the status page",
        ),
        "protocol" => (choice(&["imap", "pop3", "smtp", "ews"]), "what is spoken"),
        "listen" => (one_or_more(&text()), "address and port, or a list of them"),
        "tls" => (choice(&["off", "starttls", "implicit"]), "what the mail client speaks"),
        "allow-insecure" => (flag(), "clear text over the network, at your own risk"),
        "upstream" => (text(), "the mail server with its port, or the https URL of EWS"),
        "upstream-tls" => (choice(&["implicit", "starttls"]), "how TLS starts upstream"),
        "token-expiry-margin-time" => {
            (duration(), "SMTP: closed, between messages, this long before the token ends")
        }
        "allow-from" => (one_or_more(&text()), "addresses and networks that may connect"),
        "proxy-protocol-from" => {
            (one_or_more(&text()), "load balancers that say by PROXY protocol who connects")
        }
        "envelope-sender" => {
            (choice(&["keep", "mailbox"]), "with `fixed-account`: whose name the envelope carries")
        }
        "fixed-account" => (text(), "who sends where the client cannot sign in at all"),
        "public-url" => (text(), "EWS: how mail clients reach the listener, for autodiscover"),
        "activesync" => (flag(), "EWS: whether ActiveSync is served too"),
        "oauth" => (section("oauth", &oauth::KEYS), "what differs for this listener"),
        _ => return None,
    })
}

fn account(key: &str) -> Option<(Value, &'static str)> {
    Some(match key {
        "user" => (text(), "the name that the client signs in with; `*` is any characters"),
        "login" => (text(), "who it is for the identity provider"),
        "mailbox" => (text(), "who it is upstream"),
        "mailbox-smtp" => (text(), "who it is upstream for sending"),
        "ews-mailboxes" => {
            (one_or_more(&text()), "other mailboxes that it may open over EWS as the application")
        }
        "password" | "password-file" => (text(), "for `fixed-account` with `grant: password` alone"),
        "password-hash" => (one_or_more(&text()), "made by `mailkey hash-password`"),
        "password-hash-file" => (text(), "a file with such hashes, one a line"),
        _ => return None,
    })
}

fn oauth(key: &str) -> Option<(Value, &'static str)> {
    Some(match key {
        "client-id" => (text(), "Application (client) ID"),
        "provider" => (choice(&Provider::CHOICES.map(|(word, _)| word)), "whose identity provider it is"),
        "cloud" => (choice(&Cloud::CHOICES.map(|(word, _)| word)), "which of Microsoft's clouds"),
        "tenant-authority" => (text(), "the login host; `cloud` fills it in"),
        "directory-id" => (text(), "Directory (tenant) ID, a verified domain, or `organizations`"),
        "scope" => (text(), "what the token is for; left out, each protocol asks for its own permission"),
        "resource" => (text(), "only for a v1 endpoint, in place of `scope`"),
        "grant" => {
            let grants =
                ["password", "client-credentials", "device-code", "authorization-code", "managed-identity"];
            (one_or_more(&choice(&grants)), "how a token is asked for; a list is a chain")
        }
        "client-secret" => (text(), "a secret of the application; better in a file"),
        "client-secret-file" => (text(), "a file with the secret of the application"),
        "client-secret-expires" => (text(), "the day on which that secret ends: the status page warns ahead"),
        "client-certificate-file" => (text(), "the certificate of the application, PEM"),
        "client-key-file" => (text(), "the key of that certificate, PEM"),
        "federated-token-file" => (text(), "workload identity: a file with a token, or `azure`"),
        "token-url" => (text(), "only for `provider: custom`: RFC 6749, section 3.2"),
        "authorize-url" => (text(), "only for `provider: custom`: RFC 6749, section 3.1"),
        "device-url" => (text(), "only for `provider: custom`: RFC 8628, section 3.1"),
        "sasl" => (choice(&["xoauth2", "oauthbearer", "auto"]), "how the token is presented"),
        "offline-access" => (flag(), "whether to ask for a refresh token, where one serves"),
        _ => return None,
    })
}

fn outbound_proxy(key: &str) -> Option<(Value, &'static str)> {
    Some(match key {
        "url" => (text(), "http://, https:// or socks5h://, with host and port"),
        "username" => (text(), "for the sign-in at the proxy"),
        "password" => (text(), "its password; better in a file"),
        "password-file" => (text(), "a file with its password"),
        "auth" => (choice(&["auto", "none", "basic", "ntlm", "negotiate"]), "how to sign in there"),
        "use-for" => (one_or_more(&choice(&["identity", "ews", "mail"])), "what goes through it"),
        "for" => (one_or_more(&text()), "only these domains, addresses and networks; left out: all"),
        "no-proxy" => (one_or_more(&text()), "domains, addresses and networks that are reached directly"),
        _ => return None,
    })
}

fn small(name: &str, key: &str) -> Option<(Value, &'static str)> {
    Some(match (name, key) {
        ("tls", "certificate-file") => (text(), "shown to mail clients: PEM, leaf first"),
        ("tls", "key-file") => (text(), "its key, PEM"),
        ("tls", "extra-roots-file") => (text(), "trusted besides the system's roots, PEM"),
        ("tls", "client-certificate-file") => {
            (text(), "shown to proxies and upstreams that ask for one, PEM")
        }
        ("tls", "client-key-file") => (text(), "the key of the client certificate, PEM"),
        ("tls", "minimum-version") => {
            (json!({"enum": ["1.2", "1.3", 1.2, 1.3]}), "the lowest TLS version, both ways")
        }
        ("tls", "post-quantum") => (flag(), "a key exchange that quantum computers cannot read later"),
        ("tokens", "store") => (text(), "memory, file:/path or rediss://host:port"),
        ("tokens", "store-password") => (text(), "of the Redis server; better in a file"),
        ("tokens", "store-password-file") => (text(), "a file with the password of the Redis server"),
        ("tokens", "key") => (text(), "32 bytes as base64 or hex; better in a file"),
        ("tokens", "key-file") => (text(), "a file with the key under which the store is encrypted"),
        ("tokens", "refresh-margin") => (duration(), "a token with less life than this is renewed first"),
        ("guard", "wrong-password-hold") => (duration(), "a wrong password is answered here for this long"),
        ("guard", "wrong-passwords-per-user") => {
            (count(1, 1000), "distinct wrong passwords before Entra is not asked any more")
        }
        ("guard", "budget-window") => (duration(), "the time in which they are counted"),
        ("guard", "tarpit") => (duration(), "the longest extra wait after wrong passwords"),
        ("limits", "sessions") => (count(1, 1_000_000), "at once, all listeners"),
        ("limits", "sessions-per-user") => (count(1, 1_000_000), "at once, per user"),
        (
            "limits",
            "smtp-sessions-per-mailbox" | "imap-sessions-per-mailbox" | "pop3-sessions-per-mailbox",
        ) => (count(1, 10_000), "at once, per mailbox; a login beyond that waits"),
        ("limits", "wait-for-session") => (duration(), "how long it waits"),
        ("limits", "warm-connections") => (count(0, 32), "upstream connections ready for the next login"),
        ("limits", "warm-connection-age") => (duration(), "how long such a connection is kept"),
        ("limits", "connect-timeout") => (duration(), "one step upstream: a name, a connection, TLS"),
        ("limits", "login-timeout") => (duration(), "from the connection to the answer to the login"),
        ("limits", "idle-timeout") => (duration(), "a session without a byte for this long is ended"),
        ("limits", "drain-timeout") => (duration(), "how long a stop waits for sessions to end"),
        ("limits", "refusals-per-session") => {
            (count(1, 255), "refused logins before the connection is closed")
        }
        ("admin", "listen") => (one_or_more(&text()), "address and port, or `off`"),
        ("log", "level") => (text(), "error, warn, info, debug or trace"),
        ("run", "user") => {
            (text(), "who the process becomes once its sockets are open, where root starts it")
        }
        ("run", "group") => (text(), "its group; left out, the one that the user has"),
        ("run", "pid-file") => (text(), "where the process writes its number, for `mailkey reload`"),
        ("run", "reload-on-change") => (flag(), "take changed files without a word"),
        ("run", "bind-retry") => (duration(), "how long a start waits for an address that is in use"),
        ("run", "threads") => {
            (count(1, 256), "how many threads serve sessions; left out, one for every two processors")
        }
        ("log", "otlp-endpoint") => (text(), "an OpenTelemetry collector; needs the feature `otlp`"),
        ("log", "format") => (choice(&["text", "json"]), "for people or for machines"),
        _ => return None,
    })
}

/// A scalar: YAML makes numbers of some texts, and a value may be `${NAME}`.
fn text() -> Value {
    json!({"type": ["string", "number"]})
}

fn flag() -> Value {
    json!({"anyOf": [{"type": "boolean"}, variable()]})
}

fn choice(words: &[&str]) -> Value {
    json!({"anyOf": [{"enum": words}, variable()]})
}

fn count(least: u32, most: u32) -> Value {
    json!({"anyOf": [{"type": "integer", "minimum": least, "maximum": most}, variable()]})
}

fn duration() -> Value {
    let units = json!({"type": "string", "pattern": "^([0-9]+(ms|s|m|min|h|d))+$"});
    json!({"anyOf": [units, variable()]})
}

fn variable() -> Value {
    json!({"type": "string", "pattern": "^\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}$"})
}

fn one_or_more(one: &Value) -> Value {
    let list = json!({"type": "array", "items": one});
    json!({"anyOf": [one, list]})
}

fn required(mut section: Value, keys: &[&str]) -> Value {
    if let Some(fields) = section.as_object_mut() {
        fields.insert("required".to_owned(), json!(keys));
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<(&'static str, Vec<&'static str>)> {
        let accounts = ACCOUNT_KEYS.iter().chain(&oauth::KEYS).copied().collect();
        vec![
            ("", TOP_KEYS.to_vec()),
            ("oauth", oauth::KEYS.to_vec()),
            ("listeners", LISTENER_KEYS.to_vec()),
            ("accounts", accounts),
            ("outbound-proxy", proxy::KEYS.to_vec()),
            ("tls", TLS_KEYS.to_vec()),
            ("tokens", TOKEN_KEYS.to_vec()),
            ("guard", GUARD_KEYS.to_vec()),
            ("limits", LIMIT_KEYS.to_vec()),
            ("admin", ADMIN_KEYS.to_vec()),
            ("log", LOG_KEYS.to_vec()),
            ("run", RUN_KEYS.to_vec()),
        ]
    }

    #[test]
    fn every_key_that_the_readers_know_is_described() {
        for (name, keys) in sections() {
            for key in keys {
                assert!(property(name, key).is_some(), "describe `{key}` of `{name}` in config/schema.rs");
            }
        }
    }

    #[test]
    fn nothing_is_described_that_the_readers_do_not_know() {
        let source = include_str!("schema.rs").split("#[cfg(test)]").next().unwrap();
        let all: Vec<&str> = sections().into_iter().flat_map(|(_, keys)| keys).collect();
        let mut seen = 0;
        for line in source.lines().map(str::trim).filter(|line| line.contains(" => ")) {
            let Some(pattern) = line.split(" => ").next().filter(|pattern| pattern.starts_with(['"', '(']))
            else {
                continue;
            };
            // `("limits", "a" | "b")` names the section, then keys
            let words: Vec<&str> = pattern.split('"').skip(1).step_by(2).collect();
            let keys = if pattern.starts_with('(') { &words[1..] } else { &words[..] };
            for key in keys {
                assert!(key.is_empty() || all.contains(key), "`{key}` is no key of the readers");
                seen += 1;
            }
        }
        assert!(seen > 70, "{seen}");
    }

    #[test]
    fn every_choice_is_one_that_the_readers_take() {
        let head = "oauth: {client-id: 11111111-2222-3333-4444-555555555555}\nlisteners: [{name: a, protocol: smtp, listen: '127.0.0.1:0'";
        for (name, keys) in sections() {
            for key in keys {
                let Some(words) = property(name, key).and_then(|p| {
                    p["anyOf"][0]["enum"]
                        .as_array()
                        .cloned()
                        .or(p["anyOf"][0]["anyOf"][0]["enum"].as_array().cloned())
                }) else {
                    continue;
                };
                for word in words.iter().filter_map(Value::as_str).chain(["no such word"]) {
                    let text = match name {
                        "listeners" if key == "protocol" => {
                            head.replace("protocol: smtp", &format!("protocol: {word}")) + "}]\n"
                        }
                        "listeners" => format!("{head}, {key}: {word}}}]\n"),
                        "oauth" => {
                            head.replacen("{client-id", &format!("{{{key}: {word}, client-id"), 1) + "}]\n"
                        }
                        "" | "accounts" => continue,
                        section => format!("{head}}}]\n{section}: {{{key}: {word}}}\n"),
                    };
                    let problems = super::super::parse(&text, "x", std::path::Path::new(""), &|_| None);
                    let said = problems.map_or_else(|problems| problems.to_string(), |_| String::new());
                    let known = !said.contains("expected") || !said.contains(&format!("found `{word}`"));
                    assert_eq!(known, word != "no such word", "{name}.{key}: {word}\n{text}\n{said}");
                }
            }
        }
    }
}
