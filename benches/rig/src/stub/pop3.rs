//! POP3, as much of it as a measurement needs.

use anyhow::Result;

use super::House;
use crate::wire::{Io, Wire};

pub(super) async fn serve(house: &House, stream: Box<dyn Io>) -> Result<()> {
    let mut wire = Wire::new(stream);
    wire.say(b"+OK ready\r\n").await?;
    while let Some(line) = wire.line().await? {
        let upper = line.to_ascii_uppercase();
        let mut words = upper.split(' ');
        let answer: &[u8] = match words.next().unwrap_or_default() {
            "AUTH" => {
                let response = match line.split(' ').nth(2) {
                    Some(initial) => initial.to_owned(),
                    None => {
                        wire.say(b"+ \r\n").await?;
                        wire.line().await?.unwrap_or_default()
                    }
                };
                if house.xoauth2(&response) {
                    b"+OK signed in\r\n"
                } else {
                    b"-ERR [AUTH] no token in it\r\n"
                }
            }
            "PASS" => {
                house.plain();
                b"+OK signed in\r\n"
            }
            "CAPA" => b"+OK\r\nTOP\r\nUIDL\r\nUSER\r\nSASL PLAIN XOAUTH2\r\n.\r\n",
            "STAT" => b"+OK 1 1048576\r\n",
            "RETR" => {
                let mebibytes: u64 = words.next().and_then(|number| number.parse().ok()).unwrap_or(1);
                wire.say(b"+OK here it is\r\n").await?;
                for _ in 0..mebibytes {
                    wire.say(&house.mebibyte).await?;
                }
                b".\r\n"
            }
            "QUIT" => {
                wire.say(b"+OK see you\r\n").await?;
                wire.close().await;
                return Ok(());
            }
            _ => b"+OK\r\n",
        };
        wire.say(answer).await?;
    }
    Ok(())
}
