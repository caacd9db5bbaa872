//! The recipes in `docs/recipes`: each whole configuration is read, and does what its text says.

use std::path::PathBuf;

use mailkey::config;
use mailkey::config::model::{Config, EnvelopeSender, Protocol};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/recipes")
}

fn recipe(name: &str) -> Config {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let yaml = text.split("```yaml\n").nth(1).unwrap_or_else(|| panic!("no configuration in {name}"));
    let yaml = yaml.split("```").next().unwrap();
    let env = |variable: &str| {
        let given = ["SCANNER_PASSWORD", "NOTIFICATIONS_SECRET"].contains(&variable);
        given.then(|| "secret".to_owned())
    };
    let loaded = config::parse(yaml, name, &folder(), &env).unwrap_or_else(|problems| panic!("{problems}"));
    loaded.config
}

#[test]
fn every_recipe_is_a_whole_configuration_and_stands_in_the_list() {
    let list = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "README.md" {
            assert!(!recipe(&name).listeners.is_empty(), "{name}");
            assert!(list.contains(&format!("]({name})")), "{name} is not in the list");
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn genesys_has_imap_ews_smtp_and_a_fixed_account_with_three_applications() {
    let config = recipe("genesys.md");
    let find = |name: &str| config.listeners.iter().find(|listener| listener.name == name).unwrap();
    let client = |name: &str, user: &str| find(name).account(user).unwrap().application.client_id.clone();
    assert!(client("imap", "alice@contoso.com").starts_with("1111"));
    assert!(client("ews", "alice@contoso.com").starts_with("1111"));
    assert!(client("smtp", "alice@contoso.com").starts_with("2222"));
    let fixed = find("notifications").fixed_account.as_ref().unwrap();
    assert!(fixed.account.vouched && fixed.account.application.client_id.starts_with("3333"));
    assert_eq!(fixed.account.mailbox_for(&fixed.user, Protocol::Smtp), "noreply@contoso.com");
}

#[test]
fn the_scanners_sender_becomes_the_account() {
    let config = recipe("scanner.md");
    let fixed = config.listeners[0].fixed_account.as_ref().unwrap();
    assert_eq!(fixed.envelope_sender, EnvelopeSender::Mailbox);
    assert!(fixed.account.password.is_some());
    assert_eq!(config.listeners[0].allow_from.len(), 2);
}

#[test]
fn each_name_of_the_ticket_system_leads_where_the_recipe_says() {
    let config = recipe("ticket-system.md");
    let listener = &config.listeners[0];
    for (name, login, mailbox) in [
        ("tickets@contoso.com/Sales@contoso.com", "tickets@contoso.com", "sales@contoso.com"),
        ("tickets@contoso.com\\sales@contoso.com", "tickets@contoso.com", "sales@contoso.com"),
        ("Tickets@contoso.com\\sales", "tickets@contoso.com", "sales@contoso.com"),
        ("CONTOSO\\Alice", "alice@contoso.com", "alice@contoso.com"),
        ("Support", "tickets@contoso.com", "support@contoso.com"),
        ("bob@contoso.com", "bob@contoso.com", "bob@contoso.com"),
    ] {
        let account = listener.account(name).unwrap();
        assert_eq!(account.login_for(name), login, "{name}");
        assert_eq!(account.mailbox_for(name, Protocol::Imap), mailbox, "{name}");
        assert_eq!(account.mailbox_for(name, Protocol::Smtp), login, "{name} sends as the delegate");
    }
    // half a name is nobody's mailbox but one's own
    let account = listener.account("tickets@contoso.com/").unwrap();
    assert_eq!(account.mailbox_for("tickets@contoso.com/", Protocol::Imap), "tickets@contoso.com/");
}
