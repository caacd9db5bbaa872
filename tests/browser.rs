//! The status page in a real browser: Chromium without a window, from the system's packages.

use std::path::Path;

use mailkey::simulator::ALICE;

use crate::stage::{Plan, Stage, Told, run};

/// Starts the browser, once: a profile of its own, nothing that calls home.
async fn chromium(profile: &Path, more: &[&str], url: &str) -> Told {
    let profile = format!("--user-data-dir={}", profile.display());
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        &profile,
    ];
    let told = run("chromium", flags.iter().chain(more).chain([&url]), b"").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(!told.err.contains("CONSOLE"), "the page complains: {}", told.err);
    told
}

/// Width and height of a PNG (ISO/IEC 15948 §11.2.2).
fn size(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_shows_a_failing_login_with_its_remedy() {
    let stage = Stage::planned(Plan::default()).await;
    // fewer listeners make a better picture
    let path = stage.file("proxy.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let few = |line: &&str| !line.contains("{name:") || !line.split(',').next().unwrap().contains('-');
    let listeners = |line: &&str| !line.starts_with("  - {name: ") || few(&line.trim_start_matches("  - "));
    std::fs::write(&path, text.lines().filter(listeners).collect::<Vec<_>>().join("\n")).unwrap();
    assert!(stage.app.reload(mailkey::config::load(&path, &|_| None)));
    let url = format!("http://{}/?still", stage.app.admin_addresses()[0]);
    for (password, answer) in [(ALICE.1, "a OK"), ("not the password", "a NO"), (ALICE.1, "a OK")] {
        let mut wire = stage.wire("imap").await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {} \"{password}\"", ALICE.0), answer).await;
    }
    let profile = stage.file("profile");
    let page = chromium(&profile, &["--dump-dom"], &url).await.text();
    for part in [
        "<h1>Mailkey</h1>",
        ALICE.0,
        "AADSTS50126",
        "To do: ",
        "2 logins and 1 refusal in the last hour",
        "<rect class=\"well\"",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("not the password") && !page.contains(ALICE.1));

    let mut pictures = Vec::new();
    for (name, window, scheme) in
        [("light", (1100, 900), 1), ("dark", (1100, 900), 0), ("phone", (500, 900), 1)]
    {
        let file = stage.file(&format!("{name}.png"));
        let window = format!("--window-size={},{}", window.0, window.1);
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        let screenshot = format!("--screenshot={}", file.display());
        chromium(&profile, &[&screenshot, &window, &scheme], &url).await;
        pictures.push(std::fs::read(&file).unwrap());
    }
    assert_eq!([size(&pictures[0]).0, size(&pictures[1]).0, size(&pictures[2]).0], [1100, 1100, 500]);
    assert_ne!(pictures[0], pictures[1], "dark is not like light");
    if std::env::var_os("MAILKEY_BLESS").is_some() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        std::fs::write(docs.join("status-page.png"), &pictures[0]).unwrap();
        for (name, picture) in [("dark", &pictures[1]), ("phone", &pictures[2])] {
            std::fs::write(std::env::temp_dir().join(format!("status-page-{name}.png")), picture).unwrap();
        }
    }
}
