//! Autodiscover, ActiveSync and the WSDL: whatever tells a mail client where to go names this listener.

use std::time::Duration;

use super::rig::{Answer, MailClient, PASSWORD, Rig, USER, basic, response};
use crate::config::model::{EwsSettings, Protocol};

const BASE: &str = "http://localhost:1080";
const ENDPOINT: &str = "http://localhost:1080/EWS/Exchange.asmx";

fn with_activesync() -> Rig {
    Rig::new().with(EwsSettings { public_url: None, activesync: true })
}

async fn ask(client: &mut MailClient, method: &str, target: &str, lines: &str, body: &str) -> Answer {
    let length = body.len();
    client
        .write(format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost:1080\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    client.answer_to(method).await
}

fn pox(schema: &str) -> String {
    format!(
        "\u{feff}<?xml version=\"1.0\"?><Autodiscover xmlns=\"http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006\">\
         <Request><EMailAddress>o'neil&amp;co@contoso.com</EMailAddress><AcceptableResponseSchema>{schema}</AcceptableResponseSchema>\
         </Request></Autodiscover>"
    )
}

fn soap(operation: &str, content: &str) -> String {
    format!(
        "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:a=\"http://schemas.microsoft.com/exchange/2010/Autodiscover\">\
         <s:Header/><s:Body><a:{operation}RequestMessage><a:Request>{content}</a:Request></a:{operation}RequestMessage></s:Body></s:Envelope>"
    )
}

const OUTLOOK: &str = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a";
const MOBILE: &str = "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006";

#[tokio::test(start_paused = true)]
async fn version_2_answers_everybody() {
    let rig = with_activesync();
    let mut client = rig.connect();
    for (target, status, expected) in [
        ("/autodiscover/autodiscover.json?Email=a@b.c&Protocol=EWS", 200, format!("\"Url\":\"{ENDPOINT}\"")),
        ("/Autodiscover/Autodiscover.JSON/v1.0/a@b.c?protocol=ews", 200, format!("\"Url\":\"{ENDPOINT}\"")),
        (
            "/autodiscover/autodiscover.json?Protocol=ActiveSync",
            200,
            format!("\"Url\":\"{BASE}/Microsoft-Server-ActiveSync\""),
        ),
        (
            "/autodiscover/autodiscover.json?Protocol=AutodiscoverV1",
            200,
            format!("\"Url\":\"{BASE}/autodiscover/autodiscover.xml\""),
        ),
        (
            "/autodiscover/autodiscover.json?Protocol=REST%3Cx%3E",
            400,
            "\"ErrorCode\":\"InvalidProtocol\"".to_owned(),
        ),
        ("/autodiscover/autodiscover.json", 400, "InvalidProtocol".to_owned()),
    ] {
        let answer = ask(&mut client, "GET", target, "", "").await;
        assert_eq!(answer.status, status, "{target}");
        assert!(answer.body.contains(&expected) && !answer.body.contains("<x>"), "{target}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    }
    assert!(rig.broker.asked().is_empty());
    let rig = Rig::new();
    let answer =
        ask(&mut rig.connect(), "GET", "/autodiscover/autodiscover.json?Protocol=ActiveSync", "", "").await;
    assert_eq!(answer.status, 400);
}

#[tokio::test(start_paused = true)]
async fn xml_is_for_who_signs_in_and_every_answer_says_that_soap_is_spoken() {
    let rig = Rig::new();
    let mut client = rig.connect();
    for target in ["/autodiscover/autodiscover.xml", "/AutoDiscover/AutoDiscover.svc"] {
        for method in ["GET", "POST"] {
            let answer = ask(&mut client, method, target, "", "").await;
            assert_eq!(
                (answer.status, answer.header("x-soap-enabled")),
                (401, Some("True")),
                "{method} {target}"
            );
            assert!(answer.header("www-authenticate").unwrap().starts_with("Basic "));
        }
        let wrong = basic(USER, "wrong");
        let answer = ask(&mut client, "POST", target, &wrong, &pox(OUTLOOK)).await;
        assert_eq!((answer.status, answer.header("x-soap-enabled")), (401, Some("True")));
        let answer = ask(&mut client, "GET", target, &basic(USER, PASSWORD), "").await;
        assert_eq!(answer.status, 200, "{target}");
    }
    assert_eq!(rig.exchange.sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn plain_old_xml_leads_here_in_all_three_protocols() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    let answer = ask(&mut client, "POST", "/autodiscover/autodiscover.xml", &auth, &pox(OUTLOOK)).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/xml; charset=utf-8")));
    for needle in [
        &format!("<Response xmlns=\"{OUTLOOK}\">"),
        "<AutoDiscoverSMTPAddress>o&apos;neil&amp;co@contoso.com</AutoDiscoverSMTPAddress>",
        "<Action>settings</Action>",
        &format!(
            "<Type>EXCH</Type><ASUrl>{ENDPOINT}</ASUrl><EwsUrl>{ENDPOINT}</EwsUrl><OOFUrl>{ENDPOINT}</OOFUrl>"
        ),
        "<Type>EXPR</Type>",
        "<Type>EXHTTP</Type>",
    ] {
        assert!(answer.body.contains(needle), "{needle}: {}", answer.body);
    }
    assert!(!answer.body.contains("office365"));
    for broken in [
        "<Autodiscover/>".to_owned(),
        "junk".to_owned(),
        String::new(),
        pox(OUTLOOK).replace("<Autodiscover ", "<!DOCTYPE x><Autodiscover "),
        pox(OUTLOOK).replace("co@contoso", "co&lt;@contoso"),
        pox(OUTLOOK).replace("@contoso", "contoso"),
    ] {
        let answer = ask(&mut client, "POST", "/autodiscover/autodiscover.xml", &auth, &broken).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains("<ErrorCode>600</ErrorCode>"), "{broken}: {}", answer.body);
    }
    let answer = ask(&mut client, "POST", "/autodiscover/autodiscover.xml", &auth, &pox(MOBILE)).await;
    assert!(answer.body.contains("<Status>2</Status>") && !answer.body.contains("<Url>"), "{}", answer.body);
    let rig = with_activesync();
    let answer = ask(&mut rig.connect(), "POST", "/autodiscover/autodiscover.xml", &auth, &pox(MOBILE)).await;
    assert!(
        answer.body.contains(&format!("<Url>{BASE}/Microsoft-Server-ActiveSync</Url>")),
        "{}",
        answer.body
    );
}

#[tokio::test(start_paused = true)]
async fn soap_answers_only_what_was_asked_and_is_known() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    let target = "/autodiscover/autodiscover.svc";
    let question = soap(
        "GetUserSettings",
        "<a:Users><a:User><a:Mailbox>alice@contoso.com</a:Mailbox></a:User><a:User><a:Mailbox>no address</a:Mailbox></a:User></a:Users>\
         <a:RequestedSettings><a:Setting>ExternalEwsUrl</a:Setting><a:Setting>AutoDiscoverSMTPAddress</a:Setting>\
         <a:Setting>EcpDeliveryReportUrlFragment</a:Setting></a:RequestedSettings>",
    );
    let answer = ask(&mut client, "POST", target, &auth, &question).await;
    assert_eq!((answer.status, answer.header("x-soap-enabled")), (200, Some("True")));
    for needle in [
        "ServerVersionInfo",
        "<GetUserSettingsResponseMessage xmlns=\"http://schemas.microsoft.com/exchange/2010/Autodiscover\">",
        &format!("<Name>ExternalEwsUrl</Name><Value>{ENDPOINT}</Value>"),
        "<Name>AutoDiscoverSMTPAddress</Name><Value>alice@contoso.com</Value>",
        "<ErrorCode>InvalidUser</ErrorCode>",
    ] {
        assert!(answer.body.contains(needle), "{needle}: {}", answer.body);
    }
    assert_eq!(answer.body.matches("<UserSetting ").count(), 2);
    let question = soap(
        "GetDomainSettings",
        "<a:Domains><a:Domain>contoso.com</a:Domain></a:Domains><a:RequestedSettings><a:Setting>ExternalEwsUrl</a:Setting></a:RequestedSettings>",
    );
    let answer = ask(&mut client, "POST", target, &auth, &question).await;
    assert!(answer.body.contains(&format!(
        "<DomainSetting i:type=\"DomainStringSetting\"><Name>ExternalEwsUrl</Name><Value>{ENDPOINT}</Value>"
    )));
    let answer = ask(&mut client, "POST", target, &auth, &soap("GetOther", "")).await;
    assert_eq!(answer.status, 500);
    assert_eq!(rig.exchange.sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_question_without_end_is_not_kept() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    let long = "x".repeat(2 << 20);
    let answer = ask(&mut client, "POST", "/autodiscover/autodiscover.xml", &auth, &long).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_not_ours_is_never_repeated() {
    let rig = Rig::new();
    let mut client = rig.connect();
    for host in ["evil.example", "localhost:81", "127.0.0.2:1080", "x@localhost:1080", "localhost"] {
        client
            .write(format!(
                "GET /autodiscover/autodiscover.json?Protocol=EWS HTTP/1.1\r\nHost: {host}\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 403, "{host}");
        assert!(!answer.body.contains(host));
    }
    assert!(rig.metrics.encode().contains(r#"code="EWS-PUBLIC-URL"} 5"#));
    let public_url = Some("https://mail.contoso.com".parse().unwrap());
    let rig = Rig::new().with(EwsSettings { public_url, activesync: false });
    let mut client = rig.connect();
    client
        .write("GET /autodiscover/autodiscover.json?Protocol=EWS HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        .await;
    assert!(client.answer().await.body.contains("\"https://mail.contoso.com/EWS/Exchange.asmx\""));
}

#[tokio::test(start_paused = true)]
async fn activesync_has_a_token_of_its_own_and_no_application_may_use_it() {
    let rig = with_activesync();
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    let target = "/Microsoft-Server-ActiveSync?Cmd=FolderSync&User=alice&DeviceId=1&DeviceType=x";
    rig.exchange.then(response(200, &[("ms-asprotocolversions", "14.1,16.1")], ""));
    assert_eq!(ask(&mut client, "OPTIONS", "/microsoft-server-activesync", &auth, "").await.status, 200);
    let answer =
        ask(&mut client, "POST", target, &format!("{auth}MS-ASProtocolVersion: 16.1\r\n"), "\u{3}\u{1}j")
            .await;
    assert_eq!(answer.status, 200);
    let seen = rig.exchange.seen().remove(1);
    assert_eq!(seen.uri.to_string(), format!("https://outlook.office365.com{target}"));
    assert_eq!(
        (seen.body.as_ref(), &seen.headers["ms-asprotocolversion"]),
        (&b"\x03\x01j"[..], &"16.1".parse().unwrap())
    );
    assert_eq!(rig.broker.purposes(), [Protocol::ActiveSync; 2]);
    assert_eq!(ask(&mut client, "POST", target, &basic("robot", PASSWORD), "x").await.status, 403);
    assert!(rig.metrics.encode().contains(r#"code="EAS-APP-ONLY""#));
    assert_eq!(rig.exchange.sent(), 2);
    let rig = Rig::new();
    assert_eq!(ask(&mut rig.connect(), "POST", target, &auth, "x").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_that_is_elsewhere_is_told_to_the_administrator_alone() {
    let rig = with_activesync();
    rig.exchange.then(response(
        451,
        &[("x-ms-location", "https://eas.other.example/Microsoft-Server-ActiveSync")],
        "",
    ));
    let mut client = rig.connect();
    let answer =
        ask(&mut client, "POST", "/Microsoft-Server-ActiveSync?Cmd=Sync", &basic(USER, PASSWORD), "x").await;
    assert_eq!((answer.status, answer.header("x-ms-location")), (502, None));
    assert!(!format!("{answer:?}").contains("other.example"));
}

#[tokio::test(start_paused = true)]
async fn a_ping_may_be_silent_for_an_hour_and_no_other_request_may() {
    let rig = with_activesync();
    let hour = Duration::from_secs(3540);
    assert!(hour > rig.limits.idle_timeout);
    for (target, status) in
        [("/Microsoft-Server-ActiveSync?Cmd=Ping", Some(200)), ("/EWS/Exchange.asmx", None)]
    {
        rig.exchange.then_do(move |_| async move {
            tokio::time::sleep(hour).await;
            Ok(response(200, &[], ""))
        });
        let mut client = rig.connect();
        let auth = basic(USER, PASSWORD);
        client.write(format!("POST {target} HTTP/1.1\r\nHost: h\r\n{auth}Content-Length: 1\r\n\r\nx")).await;
        let begun = crate::clock::now();
        if let Some(status) = status {
            tokio::time::sleep(hour).await;
            assert_eq!(client.answer().await.status, status);
            // the connection is idle from here on, like any other
            assert_eq!(client.session.await.unwrap().ended, crate::ews::Ended::Idle);
            assert!(begun.elapsed() >= hour + rig.limits.idle_timeout.min(rig.limits.login_timeout));
        } else {
            assert_eq!(client.session.await.unwrap().ended, crate::ews::Ended::Idle);
            assert_eq!(begun.elapsed(), rig.limits.idle_timeout);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_wsdl_leads_here() {
    let rig = Rig::new();
    let wsdl =
        |host: &str| format!("<d xmlns:soap=\"x\"><soap:address location=\"{host}/EWS/Exchange.asmx\"/></d>");
    let theirs = wsdl("https://outlook.office365.com");
    rig.exchange.then(response(200, &[("content-type", "text/xml"), ("etag", "\"1\"")], &theirs));
    let mut client = rig.connect();
    let lines = format!(
        "{}Accept-Encoding: gzip\r\nRange: bytes=0-9\r\nIf-None-Match: \"1\"\r\n",
        basic(USER, PASSWORD)
    );
    let answer = ask(&mut client, "GET", "/ews/services.wsdl", &lines, "").await;
    assert_eq!((answer.status, answer.body), (200, wsdl(BASE)));
    let seen = rig.exchange.seen().remove(0);
    assert_eq!(seen.headers["accept-encoding"], "identity");
    assert!(seen.headers.get("range").is_none() && seen.headers.get("if-none-match").is_none());
    rig.exchange.then(response(200, &[("content-encoding", "gzip")], "\u{1f}x"));
    let answer = ask(&mut client, "GET", "/EWS/types.xsd", &lines, "").await;
    assert_eq!(answer.status, 502);
}
