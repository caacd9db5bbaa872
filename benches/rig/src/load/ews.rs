//! EWS requests: GetItem, whose item's name is how long an answer is wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinSet;

use super::{Outcome, PASSWORD, Tally, Way, patiently, user};
use crate::wire::{self, Wire};

/// Of a small answer, in octets.
const SMALL: u64 = 2048;

pub(super) async fn requests(way: &Arc<Way>, workers: u64, count: u64, keep_alive: bool) -> Outcome {
    let tally = Arc::new(Tally::default());
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..workers {
        let (way, next, tally) = (Arc::clone(way), Arc::clone(&next), Arc::clone(&tally));
        all.spawn(async move {
            let mut wire = None;
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let begin = Instant::now();
                let result = patiently(async {
                    let mut open = match wire.take() {
                        Some(open) => open,
                        None => Wire::new(wire::connect(way.port, way.tls.as_ref()).await?),
                    };
                    let octets = ask(&mut open, SMALL, keep_alive).await?;
                    if keep_alive {
                        wire = Some(open);
                    }
                    Ok(octets)
                })
                .await;
                tally.count(result, begin.elapsed());
            }
        });
    }
    all.join_all().await;
    tally.outcome(start.elapsed().as_secs_f64())
}

pub(super) async fn stream(way: &Arc<Way>, connections: u64, mebibytes: u64, repeat: u64) -> Outcome {
    let tally = Arc::new(Tally::default());
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..connections {
        let (way, tally) = (Arc::clone(way), Arc::clone(&tally));
        all.spawn(async move {
            let begin = Instant::now();
            let result = async {
                let mut wire = Wire::new(wire::connect(way.port, way.tls.as_ref()).await?);
                let mut octets = 0;
                for _ in 0..repeat {
                    octets += ask(&mut wire, mebibytes << 20, true).await?;
                }
                Ok(octets)
            }
            .await;
            tally.count(result, begin.elapsed());
        });
    }
    all.join_all().await;
    tally.outcome(start.elapsed().as_secs_f64())
}

/// One request; the octets of its answer's body.
async fn ask(wire: &mut Wire, size: u64, keep_alive: bool) -> Result<u64> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
         <soap:Envelope xmlns:soap=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/types\" \
         xmlns:m=\"http://schemas.microsoft.com/exchange/services/2006/messages\">\
         <soap:Header><t:RequestServerVersion Version=\"Exchange2013_SP1\"/></soap:Header>\
         <soap:Body><m:GetItem><m:ItemShape><t:BaseShape>AllProperties</t:BaseShape></m:ItemShape>\
         <m:ItemIds><t:ItemId Id=\"{size}\"/></m:ItemIds></m:GetItem></soap:Body></soap:Envelope>"
    );
    let head = format!(
        "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost\r\nUser-Agent: rig\r\n\
         Content-Type: text/xml; charset=utf-8\r\nContent-Length: {}\r\nAuthorization: Basic {}\r\n{}\r\n",
        body.len(),
        STANDARD.encode(format!("{}:{PASSWORD}", user(0))),
        if keep_alive { "" } else { "Connection: close\r\n" },
    );
    wire.say(format!("{head}{body}").as_bytes()).await?;
    let status = wire.line().await?.context("closed in place of an answer")?;
    ensure!(status.contains(" 200"), "`{status}`");
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = wire.line().await?.context("closed in a header")?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<u64>()?);
        }
        chunked |= header.starts_with("transfer-encoding:") && header.ends_with("chunked");
    }
    let mut octets = 0;
    if let Some(length) = length {
        wire.swallow(length).await?;
        octets = length;
    } else {
        ensure!(chunked, "an answer of unknown length");
        loop {
            let line = wire.line().await?.context("closed in a chunk")?;
            let chunk = u64::from_str_radix(line.trim(), 16)?;
            wire.swallow(chunk + 2).await?;
            octets += chunk;
            if chunk == 0 {
                break;
            }
        }
    }
    ensure!(octets == size, "{octets} octets in place of {size}");
    Ok(octets)
}
