//! A token that opens every mailbox of the tenant acts on the allowed ones, whatever the mail client sends.

use proptest::prelude::*;

use super::rig::{PASSWORD, Rig, basic, post_with};
use crate::config::model::UserPattern;
use crate::ews::impersonation::{Denied, Edit, MAX_PROLOGUE, May, Prologue};

const OWN: &str = "robot@contoso.com";
const CEO: &str = "ceo@contoso.com";
const SOAP: &str = "xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"";
const SOAP12: &str = "xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"";
const TYPES: &str = "xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/types\"";

fn others() -> Vec<UserPattern> {
    vec![UserPattern::new("*@support.contoso.com"), UserPattern::new("Info@contoso.com")]
}

fn feed(pieces: &[&[u8]]) -> Result<Option<Edit>, Denied> {
    let others = others();
    let may = May { own: OWN, others: &others };
    let mut prologue = Prologue::default();
    for (at, piece) in pieces.iter().enumerate() {
        if let Some(edit) = prologue.feed(piece, at + 1 == pieces.len(), &may)? {
            return Ok(Some(edit));
        }
    }
    Ok(None)
}

fn edited(request: &str) -> Result<String, Denied> {
    let edit = feed(&[request.as_bytes()])?.expect("a request that ended is decided upon");
    let text = String::from_utf8(edit.apply(request.as_bytes())).unwrap();
    assert_eq!(text.len() as u64, edit.length(request.len() as u64));
    Ok(text)
}

/// A header block that names a mailbox.
fn naming(kind: &str, mailbox: &str) -> String {
    format!(
        "<t:ExchangeImpersonation><t:ConnectingSID><t:{kind}>{mailbox}</t:{kind}></t:ConnectingSID></t:ExchangeImpersonation>"
    )
}

fn ours(kind: &str, mailbox: &str) -> String {
    let types = TYPES.replace("xmlns:t", "xmlns:i");
    format!(
        "<i:ExchangeImpersonation {types}><i:ConnectingSID><i:{kind}>{mailbox}</i:{kind}></i:ConnectingSID></i:ExchangeImpersonation>"
    )
}

fn envelope(header: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<s:Envelope {SOAP} {TYPES}>{header}<s:Body><m/></s:Body></s:Envelope>"
    )
}

#[test]
fn the_mailbox_is_put_into_whatever_header_there_is() {
    let own = ours("PrimarySmtpAddress", OWN);
    let version = "<t:RequestServerVersion Version=\"Exchange2016\"/>";
    for (header, expected) in [
        (String::new(), format!("<h:Header {}>{own}</h:Header>", SOAP.replace("xmlns:s", "xmlns:h"))),
        ("<s:Header/>".to_owned(), format!("<s:Header>{own}</s:Header>")),
        ("<s:Header a='/>' />".to_owned(), format!("<s:Header a='/>' >{own}</s:Header>")),
        ("<s:Header></s:Header>".to_owned(), format!("<s:Header>{own}</s:Header>")),
        (
            format!("<s:Header>\n {version}\n</s:Header>\n"),
            format!("<s:Header>{own}\n {version}\n</s:Header>\n"),
        ),
        (
            "<!-- hi --><s:Header><t:TimeZoneContext><t:X Id=\"1\">a&amp;b</t:X></t:TimeZoneContext></s:Header>".to_owned(),
            format!(
                "<!-- hi --><s:Header>{own}<t:TimeZoneContext><t:X Id=\"1\">a&amp;b</t:X></t:TimeZoneContext></s:Header>"
            ),
        ),
    ] {
        assert_eq!(edited(&envelope(&header)).unwrap(), envelope(&expected), "{header}");
        let bom = format!("\u{feff}{}", envelope(&header));
        assert_eq!(edited(&bom).unwrap(), format!("\u{feff}{}", envelope(&expected)), "{header}");
    }
    let default = "<Envelope xmlns=\"http://www.w3.org/2003/05/soap-envelope\"><Body/></Envelope>";
    assert_eq!(
        edited(default).unwrap(),
        format!(
            "<Envelope xmlns=\"http://www.w3.org/2003/05/soap-envelope\"><h:Header {}>{own}</h:Header><Body/></Envelope>",
            SOAP12.replace("xmlns:s", "xmlns:h")
        )
    );
}

#[test]
fn a_mail_client_may_name_its_own_mailbox_and_those_on_the_list() {
    for (kind, mailbox, sent) in [
        ("PrimarySmtpAddress", OWN, "PrimarySmtpAddress"),
        ("PrimarySmtpAddress", "Robot@Contoso.com", "PrimarySmtpAddress"),
        ("SmtpAddress", "\n  info@contoso.com ", "SmtpAddress"),
        ("PrincipalName", "a.b@support.contoso.com", "SmtpAddress"),
    ] {
        let request = envelope(&format!(
            "<s:Header> {}<t:MailboxCulture>en</t:MailboxCulture></s:Header>",
            naming(kind, mailbox)
        ));
        let expected = envelope(&format!(
            "<s:Header>{} <t:MailboxCulture>en</t:MailboxCulture></s:Header>",
            ours(sent, mailbox.trim())
        ));
        assert_eq!(edited(&request).unwrap(), expected, "{mailbox}");
    }
}

#[test]
fn no_trick_names_another_mailbox() {
    let named = |mailbox: &str| naming("PrimarySmtpAddress", mailbox);
    let own = named(OWN);
    for header in [
        format!("<s:Header>{}</s:Header>", named(CEO)),
        format!("<s:Header>{}</s:Header>", naming("SID", "S-1-5-21")),
        format!("<s:Header>{}</s:Header>", naming("primarysmtpaddress", OWN)),
        // two of something
        format!("<s:Header>{own}{}</s:Header>", named(CEO)),
        format!("<s:Header>{own}{own}</s:Header>"),
        format!("<s:Header>{own}</s:Header><s:Header>{}</s:Header>", named(CEO)),
        format!(
            "<s:Header>{}</s:Header>",
            own.replace("</t:ConnectingSID>", "<t:SmtpAddress>ceo@contoso.com</t:SmtpAddress></t:ConnectingSID>")
        ),
        format!("<s:Header>{}</s:Header>", own.replace("</t:Exch", "<t:ConnectingSID/></t:Exch")),
        // nested
        format!("<s:Header><t:TimeZoneContext>{}</t:TimeZoneContext></s:Header>", named(CEO)),
        format!("<s:Header><t:ExchangeImpersonation>{own}</t:ExchangeImpersonation></s:Header>"),
        format!("<t:X>{}</t:X>", named(CEO)),
        named(CEO),
        // other spellings
        format!("<s:Header>{}</s:Header>", named(CEO).replace("Exchange", "exchange")),
        format!(
            "<s:Header>{}</s:Header>",
            named(CEO).replace("<t:ExchangeImpersonation>", "<t:ExchangeImpersonation xmlns:t=\"urn:x\">")
        ),
        format!(
            "<s:Header>{}</s:Header>",
            named(CEO).replace(
                "<t:ExchangeImpersonation>",
                "<t:ExchangeImpersonation xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/typ&#101;s\">"
            )
        ),
        "<s:Header><t:ExchangeImpersonation/></s:Header>".to_owned(),
        // within the address
        format!("<s:Header>{}</s:Header>", named("robot@contoso.com<!-- -->.evil.example")),
        format!("<s:Header>{}</s:Header>", named("<!-- robot@contoso.com -->ceo@contoso.com")),
        format!("<s:Header>{}</s:Header>", named("<![CDATA[ceo@contoso.com]]>")),
        format!("<s:Header>{}</s:Header>", named("&#99;eo@contoso.com")),
        format!("<s:Header>{}</s:Header>", named("robot@contoso.com&#59;ceo@contoso.com")),
        format!("<s:Header>{}</s:Header>", named("robot@contoso.com;ceo@contoso.com")),
        format!("<s:Header>{}</s:Header>", named("ceo@contoso.com@support.contoso.com")),
        format!("<s:Header>{}</s:Header>", named("ceo@contoso.com x@support.contoso.com")),
        format!("<s:Header>{}</s:Header>", named("ceo\u{0}@support.contoso.com")),
        format!("<s:Header>{}</s:Header>", named("")),
        // hidden
        format!("<s:Header><!-- {} --></s:Header>", named(CEO)),
        format!("<s:Header><![CDATA[{}]]></s:Header>", named(CEO)),
        format!("<s:Header><t:MailboxCulture x=\"{}\"/></s:Header>", "ExchangeImpersonation"),
        format!("<s:Header><?x {}?></s:Header>", named(CEO)),
        // other ways to a mailbox, or to rights
        format!("<s:Header>{}</s:Header>", named(CEO).replace("ExchangeImpersonation", "OpenAsAdminOrSystemService")),
        "<s:Header><t:SerializedSecurityContext/></s:Header>".to_owned(),
        "<s:Header><t:ManagementRole><t:UserRoles/></t:ManagementRole></s:Header>".to_owned(),
        "<s:Header><w:Security xmlns:w=\"urn:w\"/></s:Header>".to_owned(),
    ] {
        assert!(edited(&envelope(&header)).is_err(), "{header}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_not_sent() {
    let good = envelope("");
    for (bad, why) in [
        (good.replace("<s:Env", "<!DOCTYPE x [<!ENTITY e \"Header\">]><s:Env"), "a DTD"),
        (good.replace("utf-8", "utf-16"), "an encoding"),
        (good.replace("utf-8", "IBM037"), "an encoding"),
        (good.replace("1.0", "1.1"), "a version"),
        (format!(" {good}"), "something before the declaration"),
        (format!("\u{feff}\u{feff}{good}"), "two byte order marks"),
        (good.replace("<s:Env", "<?xml-stylesheet href=\"x\"?><s:Env"), "an instruction"),
        (good.replace(SOAP, "xmlns:s=\"urn:other\""), "a namespace"),
        (good.replace("<s:Body>", "<s:body>").replace("</s:Body>", "</s:body>"), "a body in lower case"),
        (good.replace("<s:Body>", "text<s:Body>"), "text"),
        (good.replace("<s:Body>", "<q:Body>"), "a prefix that is not declared"),
        (
            good.replace("<s:Body>", "<s:Body s:x=\"1\" s:x=\"2\"><x>").replace("<m/>", "</x>"),
            "an attribute twice",
        ),
        ("<s:Body/>".to_owned(), "no envelope"),
        (String::new(), "nothing"),
        ("user=x".to_owned(), "a form"),
        (good.split("<s:Body").next().unwrap().to_owned(), "no body"),
    ] {
        assert!(matches!(edited(&bad), Err(Denied::Unreadable(_) | Denied::Encoding(_))), "{why}: {bad}");
    }
    for utf16 in [
        good.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>(),
        good.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        "\u{feff}<s".encode_utf16().flat_map(u16::to_le_bytes).collect(),
    ] {
        assert!(matches!(feed(&[&utf16]), Err(Denied::Encoding(_))));
    }
}

#[test]
fn a_prologue_without_end_is_given_up_in_time() {
    let endless = format!("<s:Envelope {SOAP}><!--{}", "x".repeat(MAX_PROLOGUE));
    assert!(matches!(feed(&[endless.as_bytes(), b" "]), Err(Denied::Unreadable(_))));
    let others = others();
    let may = May { own: OWN, others: &others };
    let mut prologue = Prologue::default();
    let begin = format!("<s:Envelope {SOAP}><!-- Body ");
    prologue.feed(begin.as_bytes(), false, &may).unwrap();
    assert!((0..100).any(|_| prologue.feed(b">", false, &may).is_err()));
}

/// Well-formed and broken parts of a prologue, hostile ones among them.
fn part() -> impl Strategy<Value = String> {
    let mailbox = prop_oneof![
        Just(OWN.to_owned()),
        Just(CEO.to_owned()),
        Just("x@support.contoso.com".to_owned()),
        Just("ceo@contoso.com,x@support.contoso.com".to_owned()),
        Just("robot@contoso.com<!-- -->ceo@contoso.com".to_owned()),
        Just("&#99;eo@contoso.com".to_owned()),
    ];
    let kind =
        prop_oneof![Just("PrimarySmtpAddress"), Just("SmtpAddress"), Just("PrincipalName"), Just("SID")];
    let named = (kind, mailbox).prop_map(|(kind, mailbox)| naming(kind, &mailbox));
    let wrapped = (
        prop_oneof![
            6 => Just(("", "")),
            1 => Just(("<!--", "-->")),
            1 => Just(("<![CDATA[", "]]>")),
            1 => Just(("<t:TimeZoneContext>", "</t:TimeZoneContext>")),
            1 => Just(("<q:ExchangeImpersonation xmlns:q=\"urn:q\">", "</q:ExchangeImpersonation>")),
            1 => Just(("<t:To x='", "'/>")),
            1 => Just(("<t:To x=\"<!--\"/>", "<t:To x=\"-->\"/>")),
        ],
        named,
    )
        .prop_map(|((before, behind), named)| format!("{before}{named}{behind}"));
    prop_oneof![
        4 => wrapped,
        2 => Just("<t:RequestServerVersion Version=\"Exchange2016\"/>".to_owned()),
        1 => Just("<t:MailboxCulture>en-US</t:MailboxCulture>".to_owned()),
        1 => Just(" \r\n".to_owned()),
        1 => Just("</s:Header><s:Header>".to_owned()),
        1 => Just("</s:Header>".to_owned()),
        1 => Just("<s:Body>".to_owned()),
        1 => Just("<!-- <s:Body> -->".to_owned()),
        1 => Just("<t:ConnectingSID>".to_owned()),
    ]
}

fn request() -> impl Strategy<Value = String> {
    let start = prop_oneof![
        4 => Just("<?xml version=\"1.0\" encoding=\"utf-8\"?>"),
        2 => Just(""),
        1 => Just("\u{feff}"),
        1 => Just("<!DOCTYPE x [<!ENTITY c \"ceo@contoso.com\">]>"),
    ];
    let soap = prop_oneof![3 => Just(SOAP), 1 => Just(SOAP12)];
    let parts = || proptest::collection::vec(part(), 0..4).prop_map(|parts| parts.concat());
    let header = prop_oneof![
        4 => parts().prop_map(|parts| format!("<s:Header>{parts}</s:Header>")),
        1 => Just("<s:Header/>".to_owned()),
        1 => parts(),
    ];
    (start, soap, header, parts()).prop_map(|(start, soap, header, body)| {
        format!("{start}<s:Envelope {soap} {TYPES}>{header}<s:Body>{body}</s:Body></s:Envelope>")
    })
}

/// The text without comments, read as simply as can be.
fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("<!--") {
        kept.push_str(before);
        rest = behind.split_once("-->").map_or("", |(_, after)| after);
    }
    kept + rest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn whatever_is_sent_only_an_allowed_mailbox_reaches_upstream(request in request(), cut in 0_usize..2000) {
        let decided = feed(&[request.as_bytes()]);
        let cut = cut.min(request.len());
        let (first, second) = request.as_bytes().split_at(cut);
        prop_assert_eq!(decided.is_ok(), feed(&[first, second]).is_ok(), "it depends on the pieces");
        if let Ok(edit) = decided {
            let edit = edit.expect("a request that ended is decided upon");
            let text = String::from_utf8(edit.apply(request.as_bytes())).unwrap();
            let plain = without_comments(&text);
            let prologue = plain.split("<s:Body").next().unwrap();
            prop_assert!(!prologue.contains("ceo@"), "{}", prologue);
            prop_assert!(!prologue.contains("&#"), "{}", prologue);
            prop_assert_eq!(prologue.matches("<i:ExchangeImpersonation ").count(), 1);
            prop_assert_eq!(prologue.to_lowercase().matches("exchangeimpersonation").count(), 2);
            let named = prologue.split("Address>").nth(1).unwrap().split('<').next().unwrap();
            prop_assert_eq!(named, &edit.mailbox);
            prop_assert!(named == OWN || named == "x@support.contoso.com", "{}", named);
            let body = |text: &str| text.get(text.rfind("</s:Body>").unwrap()..).unwrap().to_owned();
            prop_assert_eq!(body(&text), body(&request));
        }
    }

    #[test]
    fn no_input_at_all_makes_it_stumble(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(feed(&[&bytes]).is_err());
    }
}

fn ask(body: &str) -> String {
    post_with(&basic("robot", PASSWORD), body)
}

#[tokio::test(start_paused = true)]
async fn the_applications_token_acts_on_the_accounts_mailbox() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let request = envelope("");
    client
        .write(post_with(&format!("X-AnchorMailbox: {CEO}\r\n{}", basic("robot", PASSWORD)), &request))
        .await;
    assert_eq!(client.answer().await.status, 200);
    let seen = rig.exchange.seen().remove(0);
    let expected = edited(&request).unwrap();
    assert_eq!(seen.body, expected);
    assert_eq!(seen.headers["content-length"], expected.len().to_string());
    assert_eq!(seen.headers.get_all("x-anchormailbox").iter().collect::<Vec<_>>(), [OWN]);
}

#[tokio::test(start_paused = true)]
async fn everything_behind_the_prologue_streams_through_chunked_as_it_came() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic("robot", PASSWORD);
    client
        .write(format!(
            "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\nContent-Type: text/xml\r\n{auth}Transfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
    let request = envelope("<s:Header></s:Header>").replace("<m/>", &"<m>\u{fffd}</m>".repeat(50_000));
    for piece in request.as_bytes().chunks(7_001) {
        client.write(format!("{:x}\r\n", piece.len())).await;
        client.write(piece).await;
        client.write("\r\n").await;
    }
    client.write("0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    let seen = rig.exchange.seen().remove(0);
    assert_eq!(seen.headers.get("content-length"), None);
    assert!(seen.body == edited(&request).unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_replay_after_a_401_is_edited_too() {
    let rig = Rig::new();
    rig.exchange.then(super::rig::response(401, &[], ""));
    let mut client = rig.connect();
    let request = envelope("<s:Header/>");
    client.write(ask(&request)).await;
    assert_eq!(client.answer().await.status, 200);
    let seen = rig.exchange.seen();
    let expected = edited(&request).unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].body, expected);
    assert_eq!(seen[1].headers["content-length"], expected.len().to_string());
}

#[tokio::test(start_paused = true)]
async fn who_names_a_foreign_mailbox_reads_exchanges_own_fault() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client
        .write(ask(&envelope(&format!("<s:Header>{}</s:Header>", naming("PrimarySmtpAddress", CEO)))))
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (500, Some("text/xml; charset=utf-8")));
    assert!(
        answer.body.contains("<faultcode xmlns:a=") && answer.body.contains("a:ErrorImpersonateUserDenied<")
    );
    assert!(!answer.body.contains("ceo"));
    let soap12 = envelope("<s:Header><t:ManagementRole/></s:Header>").replace(SOAP, SOAP12);
    client.write(ask(&soap12)).await;
    let answer = client.answer().await;
    assert_eq!(answer.header("content-type"), Some("application/soap+xml; charset=utf-8"));
    assert!(answer.body.contains("a:ErrorImpersonateUserDenied</s:Value>"));
    assert_eq!(rig.exchange.sent(), 0);
    assert!(rig.metrics.encode().contains(r#"code="EWS-IMPERSONATION"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_out_with_the_applications_token_that_cannot_be_read() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic("robot", PASSWORD);
    let body = envelope("");
    let request = |path: &str, lines: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\n{auth}{lines}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let xml = "Content-Type: text/xml\r\n";
    for (path, lines, status) in [
        ("/EWS/Exchange.asmx", String::new(), 415),
        ("/EWS/Exchange.asmx", "Content-Type: text/xml; charset=utf-16\r\n".to_owned(), 415),
        ("/EWS/Exchange.asmx", "Content-Type: multipart/related; type=\"text/xml\"\r\n".to_owned(), 415),
        ("/EWS/Exchange.asmx", format!("{xml}Content-Type: text/plain\r\n"), 415),
        ("/EWS/Exchange.asmx", format!("{xml}Content-Encoding: gzip\r\n"), 415),
        ("/EWS/Exchange.asmx?x=1", xml.to_owned(), 403),
        ("/EWS/exchange.asmx/s/GetUserPhoto?email=ceo@contoso.com", xml.to_owned(), 403),
        ("/EWS/Services.wsdl", xml.to_owned(), 403),
    ] {
        client.write(request(path, &lines)).await;
        assert_eq!(client.answer().await.status, status, "{path} {lines}");
    }
    client
        .write(format!("GET /ews/exchange.asmx/s/GetUserPhoto?email=a@b.c HTTP/1.1\r\nHost: h\r\n{auth}\r\n"))
        .await;
    assert_eq!(client.answer().await.status, 403);
    client
        .write(
            request("/EWS/Exchange.asmx", "Content-Type: Text/XML; Charset=\"UTF-8\"\r\n")
                .replace("POST", "PUT"),
        )
        .await;
    assert_eq!(client.answer().await.status, 403);
    client.write(ask("<html>")).await;
    assert_eq!(client.answer().await.status, 400);
    assert_eq!(rig.exchange.sent(), 0);
    // the page that says that EWS is there, which clients try their password on
    client.write(format!("GET /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\n{auth}\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_users_own_token_lets_the_header_pass_for_upstream_to_judge() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let request = envelope(&format!("<s:Header>{}</s:Header>", naming("PrimarySmtpAddress", CEO)));
    assert_eq!(client.soap(&request).await.status, 200);
    assert_eq!(rig.exchange.seen()[0].body, request);
}

#[tokio::test(start_paused = true)]
async fn a_header_that_does_not_come_is_not_waited_for_without_end() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic("robot", PASSWORD);
    client
        .write(format!("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\nContent-Type: text/xml\r\n{auth}Content-Length: 900\r\n\r\n<s:"))
        .await;
    assert_eq!(client.answer().await.status, 400);
    assert!(client.is_closed().await);
    assert_eq!(rig.exchange.sent(), 0);
}
