//! Autodiscover's questions (`src/ews/autodiscover.rs`): whatever is asked, the answer is well-formed for another XML
//! parser, names no address but ours, repeats only what can be an address, and is bounded by the question.

use http_body_util::BodyExt as _;
use mailkey::ews::autodiscover::Answerer;
use mailkey::ews::target::Discovery;
use roxmltree::Document;

use super::script::Script;

/// How mail clients reach us.
const BASE: &str = "http://127.0.0.1:1080";

/// The body. The first octet chooses the language.
pub fn run(data: &[u8]) {
    let script: Script<1> = Script::read(data);
    let question = script.octets();
    let answerer =
        Answerer { base: BASE, mailbox: "alice@contoso.com", activesync: script.settings[0] & 2 != 0 };
    let language = if script.settings[0] & 1 == 0 { Discovery::Pox } else { Discovery::Soap };
    let answer = answerer.answer(language, &question);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(answer.into_body().collect()).map_err(|error| error.to_string());
    let text = String::from_utf8(body.unwrap().to_bytes().to_vec()).expect("no text");
    let document = Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    for node in document.descendants() {
        let words = node.text().unwrap_or_default();
        // the name of the operation looks like an address
        let is_address = words.contains("://") && node.is_element() && node.tag_name().name() != "Action";
        assert!(!is_address || words.starts_with(&format!("{BASE}/")), "{words} is told");
        if node.is_element() && words.contains('@') {
            let local = words.split('@').next().unwrap_or_default();
            assert!(!local.is_empty() && !words.contains(['<', '"', ' ', '\n']), "{words:?} is repeated");
        }
    }
    assert!(text.len() <= 3_000 + 700 * 100 + question.len() * 200, "{} octets", text.len());
}
