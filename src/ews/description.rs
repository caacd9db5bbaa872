//! `Services.wsdl` and its schemas: the one thing that is rewritten on its way to the mail client, so that SOAP
//! toolkits that read the endpoint off it come back here.

use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt as _;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::body;
use super::desk::BoxBody;

/// Largest description, in octets. Exchange's largest, `types.xsd`, has 400 KiB.
const MAX_DESCRIPTION: usize = 4 << 20;

/// Asks for the whole document, not compressed.
pub(super) fn ask_for_all_of_it(headers: &mut HeaderMap) {
    for name in [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE] {
        headers.remove(name);
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Puts `base` in place of the scheme and host of every `soap:address`. `None`: the document came compressed, broken
/// off, or is too long.
pub(super) async fn rewrite(response: Response<BoxBody>, base: &str) -> Option<Response<BoxBody>> {
    let (mut head, mut document) = response.into_parts();
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !head.headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return None;
    }
    let mut whole = Vec::new();
    while let Some(frame) = document.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        whole.extend_from_slice(&data);
        if whole.len() > MAX_DESCRIPTION {
            return None;
        }
    }
    let text = std::str::from_utf8(&whole).ok()?;
    let ours = with_our_address(text, base);
    head.headers.remove(ETAG);
    head.headers.insert(CONTENT_LENGTH, (ours.len() as u64).into());
    Some(Response::from_parts(head, body::text(ours)))
}

fn with_our_address(text: &str, base: &str) -> String {
    let mut reader = Reader::from_str(text);
    let mut ours = String::with_capacity(text.len());
    let mut from = 0;
    loop {
        let at = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let Ok(event) = reader.read_event() else { break };
        match event {
            Event::Start(tag) | Event::Empty(tag) if tag.local_name().as_ref() == "address" => {
                let Ok(Some(location)) = tag.try_get_attribute("location") else { continue };
                let end = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
                let value: &str = &location.value;
                let Some(start) = text.get(at..end).and_then(|tag| tag.find(value)).map(|within| at + within)
                else {
                    continue;
                };
                ours.push_str(text.get(from..start).unwrap_or_default());
                ours.push_str(&quick_xml::escape::escape(base));
                ours.push_str(path_of(value));
                from = start + value.len();
            }
            Event::Eof => break,
            Event::Start(_)
            | Event::End(_)
            | Event::Empty(_)
            | Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
    ours.push_str(text.get(from..).unwrap_or_default());
    ours
}

/// The path of a URL; that of the endpoint where it has none.
fn path_of(url: &str) -> &str {
    let behind = url.split_once("://").map_or(url, |(_, behind)| behind);
    behind.find('/').and_then(|slash| behind.get(slash..)).unwrap_or("/EWS/Exchange.asmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_leads_here_and_nothing_else_is_touched() {
        let wsdl = |host: &str| {
            format!(
                "<?xml version=\"1.0\"?><wsdl:definitions xmlns:soap=\"http://schemas.xmlsoap.org/wsdl/soap/\" \
                 targetNamespace=\"http://schemas.microsoft.com/exchange/services/2006/messages\"><wsdl:service>\
                 <wsdl:port><soap:address x=\"1\" location=\"{host}/EWS/Exchange.asmx\"/></wsdl:port>\
                 <wsdl:port><soap:address location='{host}/EWS/Exchange.asmx'></soap:address></wsdl:port>\
                 </wsdl:service><!-- https://outlook.office365.com/ --></wsdl:definitions>\n"
            )
        };
        for host in ["https://outlook.office365.com", "http://mail.internal:444"] {
            assert_eq!(with_our_address(&wsdl(host), "http://127.0.0.1:1080"), wsdl("http://127.0.0.1:1080"));
        }
        let schema = "<xs:schema><xs:element name=\"address\"/></xs:schema>";
        assert_eq!(with_our_address(schema, "http://127.0.0.1:1080"), schema);
    }
}
