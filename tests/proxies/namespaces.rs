//! In a network namespace of its own, where Office 365 can be reached through the proxy only: nothing goes around
//! it, DNS included. What is on the wire is recorded by tcpdump and by a name server that answers nothing else.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::corporate::{
    Mailkey, Plan, Running, Squid, basic, must, office, signed_in, spawn, through, until,
};

/// Documentation addresses (RFC 5737): nobody here uses them.
const OUTSIDE: &str = "198.51.100.1";
const INSIDE: &str = "198.51.100.2";

/// The proxy's name, the only one that the name server knows.
const PROXY: &str = "proxy.contoso.test";

/// A namespace with one cable, to this machine's own namespace.
struct Inside {
    name: String,
    cable: String,
}

impl Inside {
    fn new() -> Self {
        let number = std::process::id() % 100_000;
        let (name, cable, far) = (format!("mailkey{number}"), format!("mk{number}a"), format!("mk{number}b"));
        must("ip", &["netns", "add", &name]);
        let inside = Self { name, cable };
        let (name, cable) = (inside.name.as_str(), inside.cable.as_str());
        must("ip", &["link", "add", cable, "type", "veth", "peer", "name", &far, "netns", name]);
        must("ip", &["addr", "add", &format!("{OUTSIDE}/30"), "dev", cable]);
        must("ip", &["link", "set", cable, "up"]);
        must("ip", &["-n", name, "addr", "add", &format!("{INSIDE}/30"), "dev", &far]);
        must("ip", &["-n", name, "link", "set", &far, "up"]);
        must("ip", &["-n", name, "link", "set", "lo", "up"]);
        // whatever tries to go elsewhere shows on the cable
        must("ip", &["-n", name, "route", "add", "default", "via", OUTSIDE]);
        let folder = format!("/etc/netns/{name}");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(format!("{folder}/resolv.conf"), format!("nameserver {OUTSIDE}\n")).unwrap();
        inside
    }

    fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.name]).status());
        drop(std::fs::remove_dir_all(format!("/etc/netns/{}", self.name)));
    }
}

/// What a name server says to a question for an address.
pub enum Answer {
    Address(Ipv4Addr),
    NoSuchName,
    Silence,
}

/// A name server at port 53 of this address; keeps what it was asked.
pub fn name_server(
    address: &str,
    answer: impl Fn(&str) -> Answer + Send + 'static,
) -> Arc<Mutex<Vec<String>>> {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let all = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut bytes) {
            let (name, end) = question(&bytes[..n]);
            let is_a = bytes[end..end + 2] == [0, 1];
            let told = answer(&name);
            all.lock().unwrap().push(name);
            // RFC 1035 §4.1: the header and the question again, then one answer, none, or NXDOMAIN
            let (code, address) = match told {
                Answer::Address(address) => (0x80, is_a.then_some(address)),
                Answer::NoSuchName => (0x83, None),
                Answer::Silence => continue,
            };
            let mut answer = bytes[..end + 4].to_vec();
            answer[2] = 0x85;
            answer[3] = code;
            answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
            if let Some(address) = address {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend_from_slice(&address.octets());
            }
            drop(socket.send_to(&answer, from));
        }
    });
    asked
}

/// The name that is asked for, and where it ends.
fn question(bytes: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while bytes[at] != 0 {
        let length = usize::from(bytes[at]);
        labels.push(String::from_utf8_lossy(&bytes[at + 1..=at + length]).into_owned());
        at += length + 1;
    }
    (labels.join("."), at + 1)
}

/// One line for each packet on the cable.
fn recorder(inside: &Inside, into: &std::path::Path) -> Running {
    let file = std::fs::File::create(into).unwrap();
    let mut command = Command::new("tcpdump");
    command.args(["-i", &inside.cable, "-n", "-q", "-t", "-l", "--immediate-mode", "ip or ip6"]);
    spawn(command.stdout(file).stderr(Stdio::null()))
}

#[tokio::test]
async fn nothing_goes_around_the_proxy_not_even_a_question_for_a_name() {
    let inside = Inside::new();
    let asked = name_server(OUTSIDE, |name| match name {
        PROXY => Answer::Address(OUTSIDE.parse().unwrap()),
        _ => Answer::NoSuchName,
    });
    let office = office().await;
    let squid = Squid::start(super::SquidPlan { address: OUTSIDE, ..basic() }).await;
    let packets = squid.folder.path().join("packets");
    let _recorder = recorder(&inside, &packets);
    let read = || std::fs::read_to_string(&packets).unwrap();
    // proof that the recorder sees what would leak
    let probe = ["ip", "netns", "exec", &inside.name, "bash", "-c", "echo x > /dev/udp/192.0.2.1/9"];
    until("the recorder", || {
        must(probe[0], &probe[1..]);
        read().contains("192.0.2.1.9")
    })
    .await;
    let resolved = ["netns", "exec", &inside.name, "getent", "hosts", "leak.contoso.test"];
    drop(Command::new("ip").args(resolved).output());
    assert!(
        asked.lock().unwrap().iter().any(|name| name == "leak.contoso.test"),
        "the name server sees nothing"
    );
    asked.lock().unwrap().clear();

    let sections = through(&format!("http://{PROXY}:{}", squid.port), &signed_in("svc-mail"));
    let plan = Plan { sections, wrapper: inside.wrapper(), ..Plan::default() };
    let mailkey = Mailkey::start(&office, plan).await;
    mailkey.serves_everything(&inside.wrapper()).await;
    drop(mailkey);
    super::everything_went_through(&squid, &office, "svc-mail").await;

    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|name| name == PROXY), "names asked for: {asked:?}");
    assert!(!asked.is_empty(), "the proxy has a name");
    let proxy = SocketAddr::new(OUTSIDE.parse().unwrap(), squid.port);
    let (proxy, names) = (format!("{OUTSIDE}.{}", proxy.port()), format!("{OUTSIDE}.53"));
    let mut counted = 0;
    for line in read().lines().filter(|line| line.starts_with("IP ") && !line.contains("192.0.2.1.9")) {
        // IP 198.51.100.2.40000 > 198.51.100.1.3128: tcp 0
        let words: Vec<&str> = line.split_whitespace().collect();
        let ends = [words[1], words[3].trim_end_matches(':')];
        assert!(ends.iter().any(|end| *end == proxy || *end == names), "around the proxy: {line}");
        counted += 1;
    }
    assert!(counted > 100, "only {counted} packets were seen");
    // IPv6 has no route; what it says by itself is for its neighbours
    for line in read().lines().filter(|line| line.starts_with("IP6 ")) {
        assert!(line.contains("ff02::") || line.contains("fe80::"), "around the proxy: {line}");
    }
}
