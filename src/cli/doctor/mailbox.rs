//! Upstream: does it speak its protocol, does it take the token, does the mailbox open.

use std::sync::Arc;

use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Limited};
use url::Url;

use super::plan::SignIn;
use super::report::{Branch, Said};
use super::route::{Route, TLS_STEP};
use crate::config::model::{Account, BackTls, Grant, MailServer, Protocol};
use crate::explain::{CauseKind, Explain as _, Explanation, Fault, Passes, Refusal, one_line};
use crate::secret::AccessToken;
use crate::serve::probe::Probe;
use crate::token::catalogue::{self, Context};
use crate::upstream::connector::Connector;
use crate::upstream::error::UpstreamError;
use crate::upstream::https::{self, HttpsClient};

/// The step in which a mail server tells what it offers.
pub const SERVICE_STEP: &str = "service";

/// The step in which the token is presented.
pub const SIGN_IN_STEP: &str = "sign-in";

/// The step in which the mailbox opens.
pub const MAILBOX_STEP: &str = "mailbox";

/// The longest EWS answer that is read, in octets.
const MAX_ANSWER: usize = 256 * 1024;

/// The way to a mail server, up to what it offers. No secret is sent.
pub async fn walk_mail(branch: &mut Branch, route: &Route, server: &MailServer, protocol: Protocol) {
    let Some(io) = route.walk(branch).await else { return };
    let probe = Probe { connector: &route.connector, server, protocol };
    if server.tls == BackTls::Implicit {
        let Some((io, proof)) = route.encrypt(branch, io).await else { return };
        branch.step(SERVICE_STEP, async { Ok(((), offered(&probe.learn(io, Some(proof)).await?))) }).await;
        return;
    }
    // STARTTLS is part of the dialogue: whether certificates were seen tells how far it came
    let mut learnt = None;
    let encrypted = branch
        .step(TLS_STEP, async {
            let result = probe.learn(io, None).await;
            let seen = route.seen();
            let came_far = !seen.text.is_empty();
            match result {
                Err(story) if !came_far || story.code.starts_with("TLS-") => {
                    learnt = Some(seen.details);
                    Err(story)
                }
                other => Ok((other, seen)),
            }
        })
        .await;
    match encrypted {
        Some(result) => {
            branch.step(SERVICE_STEP, async { Ok(((), offered(&result?))) }).await;
        }
        None => branch.add_details(learnt.unwrap_or_default()),
    }
}

fn offered(words: &[String]) -> Said {
    let offer = one_line(&words.join(", "), 300);
    Said::new(if offer.is_empty() { "answers".to_owned() } else { format!("offers {offer}") })
}

/// The way to EWS. No secret is sent.
pub async fn walk_ews(branch: &mut Branch, route: &Route) {
    if let Some(io) = route.walk(branch).await {
        route.encrypt(branch, io).await;
    }
}

/// Signs in at a mail server and opens the mailbox.
pub async fn open_mail(
    branch: &mut Branch,
    probe: Probe<'_>,
    user: &str,
    sign_in: &SignIn,
    account: &Account,
    (token, grant): &(AccessToken, Grant),
) {
    let context = context(account, user, *grant);
    let mailbox = sign_in.mailbox.as_str();
    let opened = branch
        .step(SIGN_IN_STEP, async {
            let opened = probe.sign_in(account, mailbox, token, &context).await?;
            let said = format!("taken as `{}`: {}", one_line(mailbox, 255), opened.reply);
            Ok((opened, Said::new(said)))
        })
        .await;
    let Some(opened) = opened else { return };
    branch
        .step(MAILBOX_STEP, async {
            let text = opened.open_mailbox(mailbox, &context).await?;
            Ok(((), Said::new(text)))
        })
        .await;
}

/// Asks EWS for the Inbox: the answer tells of token and mailbox at once.
pub async fn open_ews(
    branch: &mut Branch,
    connector: Arc<Connector>,
    url: &Url,
    user: &str,
    sign_in: &SignIn,
    account: &Account,
    (token, grant): &(AccessToken, Grant),
) {
    let context = context(account, user, *grant);
    let mailbox = sign_in.mailbox.as_str();
    let answer = branch
        .step(SIGN_IN_STEP, async {
            let answer = get_folder(connector, url, mailbox, token, *grant).await?;
            if answer.status == 401 {
                return Err(catalogue::exchange(Protocol::Ews, "401", Some(&answer.diagnostics), &context));
            }
            let said = format!("taken as `{}`: HTTP {}", one_line(mailbox, 255), answer.status);
            Ok((answer, Said::new(said)))
        })
        .await;
    let Some(answer) = answer else { return };
    branch
        .step(MAILBOX_STEP, async {
            if answer.status == 200 && answer.body.contains("ResponseClass=\"Success\"") {
                let count = between(&answer.body, "TotalCount>", "<").map(|count| one_line(count, 20));
                let count = count.map(|count| format!("; messages: {count}")).unwrap_or_default();
                return Ok(((), Said::new(format!("it opens{count}"))));
            }
            let code =
                between(&answer.body, "ResponseCode>", "<").or(between(&answer.body, "faultcode", "</"));
            let reply = format!("{} {}", answer.status, one_line(code.unwrap_or_default(), 200));
            Err(catalogue::exchange(Protocol::Ews, reply.trim(), Some(&answer.diagnostics), &context))
        })
        .await;
}

/// A user whom a listener does not serve.
pub fn not_served(user: &str) -> Explanation {
    Explanation {
        code: "USER-NOT-SERVED".into(),
        fault: Fault::Configuration,
        what: format!("no entry of `accounts` matches `{}`", one_line(user, 255)),
        remedy: "correct the user name, or add an entry to `accounts`".to_owned(),
        passes: Passes::Never,
        refusal: Refusal::contact_admin(CauseKind::NotServed),
    }
}

struct EwsAnswer {
    status: u16,
    diagnostics: String,
    body: String,
}

async fn get_folder(
    connector: Arc<Connector>,
    url: &Url,
    mailbox: &str,
    token: &AccessToken,
    grant: Grant,
) -> Result<EwsAnswer, Explanation> {
    let broken = |why: String| {
        let target = url.host_str().unwrap_or_default().to_owned();
        UpstreamError::Broken { target, why }.explain()
    };
    let address = url.join("/EWS/Exchange.asmx").map_err(|error| broken(error.to_string()))?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(address.as_str())
        .header(header::CONTENT_TYPE, "text/xml; charset=utf-8")
        .header(header::ACCEPT, "text/xml")
        .header(header::USER_AGENT, concat!("mailkey-doctor/", env!("CARGO_PKG_VERSION")));
    if mailbox.contains('@') && mailbox.bytes().all(|b| b.is_ascii_graphic()) {
        request = request.header("x-anchormailbox", mailbox);
    }
    let application_only = matches!(grant, Grant::ClientCredentials | Grant::ManagedIdentity);
    let request = request
        .body(https::text(soap(mailbox, application_only)))
        .map_err(|error| broken(error.to_string()))?;
    let response = HttpsClient::new(connector).send(request, token).await.map_err(|error| error.explain())?;
    let status = response.status().as_u16();
    let shown: Vec<String> = ["x-ms-diagnostics", "www-authenticate"]
        .iter()
        .flat_map(|name| response.headers().get_all(*name))
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| broken(one_line(&error.to_string(), 200)))?.to_bytes();
    Ok(EwsAnswer {
        status,
        diagnostics: one_line(&shown.join(" | "), 600),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// GetFolder of the Inbox; an application's own token acts as the mailbox (ExchangeImpersonation).
fn soap(mailbox: &str, application_only: bool) -> String {
    let header = if application_only {
        format!(
            "<s:Header><t:RequestServerVersion Version=\"Exchange2013\"/><t:ExchangeImpersonation>\
             <t:ConnectingSID><t:PrimarySmtpAddress>{}</t:PrimarySmtpAddress></t:ConnectingSID>\
             </t:ExchangeImpersonation></s:Header>",
            quick_xml::escape::escape(mailbox)
        )
    } else {
        "<s:Header><t:RequestServerVersion Version=\"Exchange2013\"/></s:Header>".to_owned()
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
         <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/types\" \
         xmlns:m=\"http://schemas.microsoft.com/exchange/services/2006/messages\">{header}<s:Body>\
         <m:GetFolder><m:FolderShape><t:BaseShape>Default</t:BaseShape></m:FolderShape><m:FolderIds>\
         <t:DistinguishedFolderId Id=\"inbox\"/></m:FolderIds></m:GetFolder></s:Body></s:Envelope>"
    )
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

fn context<'a>(account: &'a Account, user: &'a str, grant: Grant) -> Context<'a> {
    let application = &account.application;
    Context {
        user,
        application: &application.client_id,
        directory: &application.endpoints.authority,
        grant: grant.as_str(),
    }
}
