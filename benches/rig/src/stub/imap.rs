//! IMAP, as much of it as a measurement needs.

use anyhow::Result;

use super::House;
use crate::wire::{Io, Wire};

const CAPABILITY: &str =
    "CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 ID IDLE LITERAL+ NAMESPACE UIDPLUS";

pub(super) async fn serve(house: &House, stream: Box<dyn Io>) -> Result<()> {
    let mut wire = Wire::new(stream);
    wire.say(format!("* OK [{CAPABILITY}] ready\r\n").as_bytes()).await?;
    while let Some(line) = wire.line().await? {
        let (tag, command) = line.split_once(' ').unwrap_or((&line, ""));
        let upper = command.to_ascii_uppercase();
        let mut words = upper.split(' ');
        let verb = words.next().unwrap_or_default();
        let answer = match verb {
            "AUTHENTICATE" => {
                let response = match command.split(' ').nth(2) {
                    Some(initial) => initial.to_owned(),
                    None => {
                        wire.say(b"+ \r\n").await?;
                        wire.line().await?.unwrap_or_default()
                    }
                };
                if house.xoauth2(&response) {
                    format!("{tag} OK [{CAPABILITY}] signed in\r\n")
                } else {
                    format!("{tag} NO [AUTHENTICATIONFAILED] no token in it\r\n")
                }
            }
            "LOGIN" => {
                house.plain();
                format!("{tag} OK [{CAPABILITY}] signed in\r\n")
            }
            "CAPABILITY" => format!("* {CAPABILITY}\r\n{tag} OK done\r\n"),
            "FETCH" => {
                let mebibytes: u64 = words.next().and_then(|number| number.parse().ok()).unwrap_or(1);
                let head = format!("* {mebibytes} FETCH (BODY[] {{{}}}\r\n", mebibytes << 20);
                wire.say(head.as_bytes()).await?;
                for _ in 0..mebibytes {
                    wire.say(&house.mebibyte).await?;
                }
                format!(")\r\n{tag} OK done\r\n")
            }
            "APPEND" => {
                let size = command.rsplit('{').next().unwrap_or_default().trim_end_matches('}');
                if !size.ends_with('+') {
                    wire.say(b"+ go on\r\n").await?;
                }
                wire.swallow(size.trim_end_matches('+').parse::<u64>()? + 2).await?;
                format!("{tag} OK [APPENDUID 1 1] done\r\n")
            }
            "IDLE" => {
                wire.say(b"+ idling\r\n").await?;
                if wire.line().await?.is_none() {
                    return Ok(());
                }
                format!("{tag} OK done\r\n")
            }
            "LOGOUT" => {
                wire.say(format!("* BYE see you\r\n{tag} OK done\r\n").as_bytes()).await?;
                wire.close().await;
                return Ok(());
            }
            _ => format!("{tag} OK done\r\n"),
        };
        wire.say(answer.as_bytes()).await?;
    }
    Ok(())
}
