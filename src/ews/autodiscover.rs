//! Autodiscover, answered here: mail clients that look for their server find this listener, and stay.
//!
//! No address of upstream, no redirect, nothing of the mailbox is told: the answer is made of the request and of
//! how the mail client reached us.
//!
//! Sources: MS-OXDSCLI (POX), MS-OXWSADISC (SOAP), Microsoft's page "Autodiscover for Exchange"; which settings are
//! asked for was read in exchangelib and in the EWS Managed API.

use std::fmt::Write as _;

use http::header::{HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use quick_xml::Reader;
use quick_xml::escape::escape;
use quick_xml::events::Event;

use super::answer;
use super::body::RequestBody;
use super::desk::BoxBody;
use super::impersonation::is_address;
use super::target::Discovery;

/// Longest question, in octets.
const MAX_QUESTION: usize = 1 << 20;

/// Most mailboxes or domains in a question; Exchange's own limit.
const MAX_SUBJECTS: usize = 100;

/// Where the EWS Managed API reads that the SOAP language is spoken, on the 401 of its first GET too.
const SPEAKS_SOAP: HeaderName = HeaderName::from_static("x-soap-enabled");

const NAMESPACE: &str = "http://schemas.microsoft.com/exchange/2010/Autodiscover";
const MOBILE_SYNC: &str = "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006";
const OUTLOOK: &str = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a";
const RESPONSE: &str = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006";

const XML: &str = "text/xml; charset=utf-8";

/// Who asks, and what there is to tell.
pub struct Answerer<'a> {
    /// How mail clients reach us, without a `/` at the end.
    pub base: &'a str,
    /// Who signed in.
    pub mailbox: &'a str,
    /// Whether there is ActiveSync.
    pub activesync: bool,
}

/// Marks an answer as one of autodiscover, whatever it says.
pub(super) fn mark(mut answer: Response<BoxBody>) -> Response<BoxBody> {
    answer.headers_mut().insert(SPEAKS_SOAP, HeaderValue::from_static("True"));
    answer
}

impl Answerer<'_> {
    /// Version 2, which needs no sign-in: one protocol, one address.
    pub fn json(&self, uri: &Uri) -> Response<BoxBody> {
        let query = uri.query().unwrap_or_default();
        let asked = url::form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case("protocol"))
            .map(|(_, value)| value.to_ascii_lowercase());
        let found = match asked.as_deref() {
            Some("ews") => Some(("EWS", self.ews())),
            Some("activesync") if self.activesync => Some(("ActiveSync", self.eas())),
            Some("autodiscoverv1") => {
                Some(("AutodiscoverV1", format!("{}/autodiscover/autodiscover.xml", self.base)))
            }
            Some(_) | None => None,
        };
        let (status, text) = match found {
            Some((protocol, url)) => {
                (StatusCode::OK, serde_json::json!({"Protocol": protocol, "Url": url}).to_string())
            }
            None => (
                StatusCode::BAD_REQUEST,
                serde_json::json!({
                    "ErrorCode": "InvalidProtocol",
                    "ErrorMessage": "The given protocol value is invalid. Supported values are 'EWS', 'AutodiscoverV1' \
                                     and, where it is switched on, 'ActiveSync'."
                })
                .to_string(),
            ),
        };
        answer::document(status, "application/json; charset=utf-8", text)
    }

    /// Answers who has signed in. `None`: the question is too long, or does not come.
    pub(super) async fn xml(
        &self,
        language: Discovery,
        method: &Method,
        body: &RequestBody,
    ) -> Option<Response<BoxBody>> {
        let question = if *method == Method::POST { read(body).await? } else { Vec::new() };
        Some(match language {
            Discovery::Soap if *method != Method::POST => {
                answer::plain(StatusCode::OK, "autodiscover is here: ask it by POST")
            }
            Discovery::Soap | Discovery::Pox | Discovery::Json => self.answer(language, &question),
        })
    }

    /// The answer to a question, whatever it is.
    pub fn answer(&self, language: Discovery, question: &[u8]) -> Response<BoxBody> {
        let question = std::str::from_utf8(question).unwrap_or_default();
        let question = Question::read(question.trim_start_matches('\u{feff}'));
        match language {
            Discovery::Soap => self.soap(question.as_ref()),
            Discovery::Pox | Discovery::Json => self.pox(question.as_ref()),
        }
    }

    fn pox(&self, question: Option<&Question>) -> Response<BoxBody> {
        let invalid = || {
            pox_document(&format!(
                "<Response><Error Time=\"{}\" Id=\"1\"><ErrorCode>600</ErrorCode><Message>Invalid Request</Message><DebugData/></Error></Response>",
                now()
            ))
        };
        let Some(question) = question else { return invalid() };
        let Some(mailbox) = question.mailboxes.first() else { return invalid() };
        if !is_address(mailbox) {
            return invalid();
        }
        let (mailbox, ews) = (escape(mailbox.as_str()), self.ews());
        let ews = escape(&ews);
        if question.wants_mobile {
            let response = if self.activesync {
                let eas = self.eas();
                let eas = escape(&eas);
                format!(
                    "<Response xmlns=\"{MOBILE_SYNC}\"><Culture>en:us</Culture><User><DisplayName>{mailbox}</DisplayName><EMailAddress>{mailbox}</EMailAddress></User>\
                     <Action><Settings><Server><Type>MobileSync</Type><Url>{eas}</Url><Name>{eas}</Name></Server></Settings></Action></Response>"
                )
            } else {
                format!(
                    "<Response xmlns=\"{MOBILE_SYNC}\"><Culture>en:us</Culture><User><EMailAddress>{mailbox}</EMailAddress></User>\
                     <Action><Error><Status>2</Status><Message>ActiveSync is not served here</Message></Error></Action></Response>"
                )
            };
            return pox_document(&response);
        }
        let mut protocols = String::new();
        for kind in ["EXCH", "EXPR", "EXHTTP"] {
            // Writing to a String cannot fail.
            let _infallible = write!(
                protocols,
                "<Protocol><Type>{kind}</Type><ASUrl>{ews}</ASUrl><EwsUrl>{ews}</EwsUrl><OOFUrl>{ews}</OOFUrl></Protocol>"
            );
        }
        pox_document(&format!(
            "<Response xmlns=\"{OUTLOOK}\"><User><DisplayName>{mailbox}</DisplayName><AutoDiscoverSMTPAddress>{mailbox}</AutoDiscoverSMTPAddress></User>\
             <Account><AccountType>email</AccountType><Action>settings</Action>{protocols}</Account></Response>"
        ))
    }

    fn soap(&self, question: Option<&Question>) -> Response<BoxBody> {
        match question {
            Some(question) if question.operation == "GetUserSettingsRequestMessage" => {
                let mut responses = String::new();
                for mailbox in &question.mailboxes {
                    let (errors, settings) = if is_address(mailbox) {
                        self.user_settings(mailbox, &question.settings)
                    } else {
                        (
                            "<ErrorCode>InvalidUser</ErrorCode><ErrorMessage>The e-mail address is invalid.</ErrorMessage>",
                            String::new(),
                        )
                    };
                    // Writing to a String cannot fail.
                    let _infallible = write!(
                        responses,
                        "<UserResponse>{errors}<RedirectTarget i:nil=\"true\"/><UserSettingErrors/><UserSettings>{settings}</UserSettings></UserResponse>"
                    );
                }
                soap_document("GetUserSettings", &format!("<UserResponses>{responses}</UserResponses>"))
            }
            Some(question) if question.operation == "GetDomainSettingsRequestMessage" => {
                let one = self.domain_response(&question.settings);
                let responses = one.repeat(question.domains);
                soap_document("GetDomainSettings", &format!("<DomainResponses>{responses}</DomainResponses>"))
            }
            Some(_) | None => {
                answer::fault("ErrorInvalidRequest", "The request is not answered here.", false)
            }
        }
    }

    fn user_settings(&self, mailbox: &str, asked: &[String]) -> (&'static str, String) {
        let ews = self.ews();
        let mut settings = String::new();
        for name in asked {
            let value = match name.as_str() {
                "ExternalEwsUrl" | "InternalEwsUrl" => ews.as_str(),
                "AutoDiscoverSMTPAddress" => mailbox,
                "UserDisplayName" => self.mailbox,
                "EwsSupportedSchemas" => {
                    "Exchange2007, Exchange2007_SP1, Exchange2010, Exchange2010_SP1, Exchange2010_SP2, Exchange2013, \
                     Exchange2013_SP1, Exchange2015, Exchange2016, V2015_10_05, V2016_06_15, V2017_04_14, V2017_07_11, \
                     V2018_01_08"
                }
                "CasVersion" | "ExternalEwsVersion" => "15.20.0000.000",
                "UserMSOnline" => "True",
                _ => continue,
            };
            // Writing to a String cannot fail.
            let _infallible = write!(
                settings,
                "<UserSetting i:type=\"StringSetting\"><Name>{name}</Name><Value>{}</Value></UserSetting>",
                escape(value)
            );
        }
        ("<ErrorCode>NoError</ErrorCode><ErrorMessage/>", settings)
    }

    fn domain_response(&self, asked: &[String]) -> String {
        let ews = self.ews();
        let mut settings = String::new();
        for name in asked {
            let value = match name.as_str() {
                "ExternalEwsUrl" => ews.as_str(),
                "ExternalEwsVersion" => "15.20.0000.000",
                _ => continue,
            };
            // Writing to a String cannot fail.
            let _infallible = write!(
                settings,
                "<DomainSetting i:type=\"DomainStringSetting\"><Name>{name}</Name><Value>{}</Value></DomainSetting>",
                escape(value)
            );
        }
        format!(
            "<DomainResponse><ErrorCode>NoError</ErrorCode><ErrorMessage/><DomainSettingErrors/><DomainSettings>{settings}</DomainSettings><RedirectTarget i:nil=\"true\"/></DomainResponse>"
        )
    }

    fn ews(&self) -> String {
        format!("{}/EWS/Exchange.asmx", self.base)
    }

    fn eas(&self) -> String {
        format!("{}/Microsoft-Server-ActiveSync", self.base)
    }
}

async fn read(body: &RequestBody) -> Option<Vec<u8>> {
    let mut question = Vec::new();
    while let Some(piece) = body.piece().await {
        question.extend_from_slice(&piece.ok()?);
        if question.len() > MAX_QUESTION {
            return None;
        }
    }
    Some(question)
}

/// What was asked, whichever language it was asked in.
#[derive(Debug, Default)]
struct Question {
    /// The first element of the SOAP body.
    operation: String,
    /// For whom.
    mailboxes: Vec<String>,
    /// How many domains were named.
    domains: usize,
    /// Which settings.
    settings: Vec<String>,
    /// Whether the answer is for ActiveSync.
    wants_mobile: bool,
}

impl Question {
    /// `None`: it is not well-formed, has a DTD, or asks for too much.
    fn read(text: &str) -> Option<Self> {
        let mut reader = Reader::from_str(text);
        let mut question = Self::default();
        let mut path: Vec<String> = Vec::new();
        let mut value = String::new();
        loop {
            match reader.read_event().ok()? {
                Event::Start(tag) => {
                    let name = tag.local_name().as_ref().to_owned();
                    if path.last().is_some_and(|parent| parent == "Body") {
                        question.operation.clone_from(&name);
                    }
                    path.push(name);
                    value.clear();
                    if path.len() > 32 {
                        return None;
                    }
                }
                Event::Text(text) => value.push_str(&text),
                Event::GeneralRef(name) => {
                    let predefined = match &*name {
                        "amp" => '&',
                        "apos" => '\'',
                        _ => return None,
                    };
                    value.push(predefined);
                }
                Event::End(_) => {
                    let name = path.pop()?;
                    question.take(&name, path.last().map(String::as_str), value.trim())?;
                    value.clear();
                }
                Event::DocType(_) | Event::CData(_) => return None,
                Event::Eof => break,
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
        (path.is_empty() && !text.trim().is_empty()).then_some(question)
    }

    fn take(&mut self, name: &str, parent: Option<&str>, value: &str) -> Option<()> {
        match (name, parent) {
            ("EMailAddress", Some("Request")) | ("Mailbox", Some("User")) => {
                self.mailboxes.push(value.to_owned());
            }
            ("Domain", Some("Domains")) => self.domains += 1,
            ("Setting", _) => self.settings.push(value.to_owned()),
            ("AcceptableResponseSchema", _) => self.wants_mobile = value.eq_ignore_ascii_case(MOBILE_SYNC),
            _ => {}
        }
        let asked = self.mailboxes.len().max(self.domains).max(self.settings.len());
        (asked <= MAX_SUBJECTS).then_some(())
    }
}

fn now() -> String {
    crate::clock::wall().strftime("%H:%M:%S.0000000").to_string()
}

fn pox_document(response: &str) -> Response<BoxBody> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<Autodiscover xmlns=\"{RESPONSE}\">{response}</Autodiscover>\n"
    );
    answer::document(StatusCode::OK, XML, text)
}

fn soap_document(operation: &str, content: &str) -> Response<BoxBody> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:a=\"http://www.w3.org/2005/08/addressing\">\
         <s:Header><a:Action s:mustUnderstand=\"1\">{NAMESPACE}/Autodiscover/{operation}Response</a:Action>\
         <h:ServerVersionInfo xmlns:h=\"{NAMESPACE}\"><h:MajorVersion>15</h:MajorVersion><h:MinorVersion>20</h:MinorVersion><h:MajorBuildNumber>0</h:MajorBuildNumber>\
         <h:MinorBuildNumber>0</h:MinorBuildNumber><h:Version>Exchange2015</h:Version></h:ServerVersionInfo></s:Header>\
         <s:Body><{operation}ResponseMessage xmlns=\"{NAMESPACE}\"><Response xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\">\
         <ErrorCode>NoError</ErrorCode><ErrorMessage/>{content}</Response></{operation}ResponseMessage></s:Body></s:Envelope>\n"
    );
    answer::document(StatusCode::OK, XML, text)
}
