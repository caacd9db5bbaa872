//! SMTP submission, as much of it as a measurement needs.

use anyhow::Result;

use super::House;
use crate::wire::{Io, Wire};

/// What it calls itself, as Exchange Online does.
const NAME: &str = "XX0P000.outlook.office365.com";

pub(super) async fn serve(house: &House, stream: Box<dyn Io>, encrypted: bool) -> Result<()> {
    let mut encrypted = encrypted;
    let mut wire = Wire::new(stream);
    wire.say(format!("220 {NAME} Microsoft ESMTP MAIL Service ready\r\n").as_bytes()).await?;
    while let Some(line) = wire.line().await? {
        let upper = line.to_ascii_uppercase();
        let mut words = upper.split(' ');
        let answer: &[u8] = match words.next().unwrap_or_default() {
            "EHLO" => {
                let more = if encrypted { "AUTH PLAIN LOGIN XOAUTH2" } else { "STARTTLS" };
                let answer = format!(
                    "250-{NAME} Hello [127.0.0.1]\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-8BITMIME\r\n\
                     250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n250 {more}\r\n"
                );
                wire.say(answer.as_bytes()).await?;
                continue;
            }
            "STARTTLS" => {
                wire.say(b"220 2.0.0 go on\r\n").await?;
                wire = Wire::new(house.handshake(wire.into_stream()).await?);
                encrypted = true;
                continue;
            }
            "AUTH" => {
                let response = match line.split(' ').nth(2) {
                    Some(initial) => initial.to_owned(),
                    None => {
                        wire.say(b"334 \r\n").await?;
                        wire.line().await?.unwrap_or_default()
                    }
                };
                match words.next().unwrap_or_default() {
                    "XOAUTH2" if house.xoauth2(&response) => b"235 2.7.0 signed in\r\n",
                    "PLAIN" => {
                        house.plain();
                        b"235 2.7.0 signed in\r\n"
                    }
                    _ => b"535 5.7.3 no token in it\r\n",
                }
            }
            "DATA" => {
                wire.say(b"354 go on\r\n").await?;
                wire.swallow_through(b"\r\n.\r\n").await?;
                b"250 2.0.0 accepted\r\n"
            }
            "BDAT" => {
                wire.swallow(words.next().unwrap_or_default().parse()?).await?;
                b"250 2.0.0 accepted\r\n"
            }
            "QUIT" => {
                wire.say(b"221 2.0.0 see you\r\n").await?;
                wire.close().await;
                return Ok(());
            }
            _ => b"250 2.0.0 done\r\n",
        };
        wire.say(answer).await?;
    }
    Ok(())
}
