//! SMTP submission, as much of it as a measurement needs.

use anyhow::Result;

use super::House;
use crate::wire::{Io, Wire};

pub(super) async fn serve(house: &House, stream: Box<dyn Io>, encrypted: bool) -> Result<()> {
    let mut encrypted = encrypted;
    let mut wire = Wire::new(stream);
    wire.say(b"220 localhost ready\r\n").await?;
    while let Some(line) = wire.line().await? {
        let upper = line.to_ascii_uppercase();
        let mut words = upper.split(' ');
        let answer: &[u8] = match words.next().unwrap_or_default() {
            "EHLO" if encrypted => {
                b"250-localhost\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-CHUNKING\r\n\
                  250-ENHANCEDSTATUSCODES\r\n250 AUTH PLAIN LOGIN XOAUTH2\r\n"
            }
            "EHLO" => {
                b"250-localhost\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-CHUNKING\r\n\
                  250-ENHANCEDSTATUSCODES\r\n250 STARTTLS\r\n"
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
