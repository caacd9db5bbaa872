//! The configuration of each thing under test, and how it is started.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Programs, Thing};
use crate::load::user;
use crate::stub::Ports;

/// For how many users email-oauth2-proxy has a section: as many as the storm has.
const SECTIONS: u64 = 50;

/// Where a thing is set up.
pub(super) struct Setting<'a> {
    pub(super) folder: &'a Path,
    pub(super) authority: &'a Path,
    /// Its own.
    pub(super) ports: Ports,
    pub(super) upstream: Ports,
    /// Mailkey has an entry for each of so many users.
    pub(super) accounts: u64,
}

impl Setting<'_> {
    pub(super) fn command(&self, thing: Thing, programs: &Programs) -> Result<Command> {
        Ok(match thing {
            Thing::Direct => anyhow::bail!("nothing to start"),
            Thing::Pipe => self.pipe()?,
            Thing::Gateway => self.gateway()?,
            Thing::Mailkey => self.mailkey(programs, "", "")?,
            Thing::MailkeyCold => self.mailkey(programs, "", ", warm-connections: 0")?,
            Thing::MailkeyClassic => self.mailkey(programs, ", post-quantum: false", "")?,
            Thing::Emailproxy => self.emailproxy(programs)?,
            Thing::Dovecot => self.dovecot()?,
            Thing::Nginx => self.nginx()?,
            Thing::Haproxy => self.haproxy()?,
            Thing::Stunnel => self.stunnel()?,
        })
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
        Ok(path)
    }

    /// Its own port, and the stub's, for each protocol whose TLS begins with the connection.
    fn pairs(&self) -> [(&'static str, u16, u16); 3] {
        [
            ("imap", self.ports.imap, self.upstream.imap),
            ("pop3", self.ports.pop3, self.upstream.pop3),
            ("smtp", self.ports.smtp, self.upstream.smtp),
        ]
    }

    fn pipe(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("pipe").arg(self.authority);
        for (_, port, upstream) in self.pairs() {
            command.arg(format!("{port}:{upstream}"));
        }
        command.arg(format!("{}:{}", self.ports.https, self.upstream.https));
        Ok(command)
    }

    fn gateway(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("gateway")
            .arg(self.authority)
            .arg(format!("{}:{}", self.ports.https, self.upstream.https));
        Ok(command)
    }

    /// As shipped, but for bounds per user that a benchmark with few users would meet.
    fn mailkey(&self, programs: &Programs, tls: &str, limits: &str) -> Result<Command> {
        let Ports { imap, pop3, smtp, submission, https } = self.ports;
        let up = self.upstream;
        let accounts = match self.accounts {
            0 => String::new(),
            count => (0..count).fold("accounts:\n".to_owned(), |text, number| {
                format!("{text}  - {{user: '{name}', mailbox: '{name}'}}\n", name = user(number))
            }),
        };
        let text = format!(
            "oauth:\n  tenant-authority: https://localhost:{}/\n  directory-id: organizations\n  \
             client-id: 11111111-2222-3333-4444-555555555555\n\
             listeners:\n  \
             - {{name: imap, protocol: imap, listen: '127.0.0.1:{imap}', upstream: 'localhost:{}', upstream-tls: implicit}}\n  \
             - {{name: pop3, protocol: pop3, listen: '127.0.0.1:{pop3}', upstream: 'localhost:{}', upstream-tls: implicit}}\n  \
             - {{name: smtp, protocol: smtp, listen: '127.0.0.1:{smtp}', upstream: 'localhost:{}', upstream-tls: implicit}}\n  \
             - {{name: submission, protocol: smtp, listen: '127.0.0.1:{submission}', upstream: 'localhost:{}', upstream-tls: starttls}}\n  \
             - {{name: ews, protocol: ews, listen: '127.0.0.1:{https}', upstream: 'https://localhost:{}/EWS/Exchange.asmx'}}\n\
             tls: {{extra-roots-file: '{}'{tls}}}\n\
             limits: {{sessions-per-user: 10000, smtp-sessions-per-mailbox: 10000, imap-sessions-per-mailbox: 10000, \
             pop3-sessions-per-mailbox: 10000{limits}}}\n\
             outbound-proxy: off\nadmin: {{listen: '127.0.0.1:0'}}\n{accounts}",
            up.https,
            up.imap,
            up.pop3,
            up.smtp,
            up.submission,
            up.https,
            self.authority.display(),
        );
        let mut command = Command::new(&programs.mailkey);
        command.arg("run").arg("--config").arg(self.file("proxy.yaml", &text)?);
        Ok(command)
    }

    /// With the password grant, as Mailkey has it.
    fn emailproxy(&self, programs: &Programs) -> Result<Command> {
        let Ports { imap, pop3, smtp, submission, .. } = self.ports;
        let up = self.upstream;
        let mut text = String::new();
        for (name, port, upstream, more) in [
            ("IMAP", imap, up.imap, ""),
            ("POP", pop3, up.pop3, ""),
            ("SMTP", smtp, up.smtp, ""),
            ("SMTP", submission, up.submission, "server_starttls = True\n"),
        ] {
            writeln!(
                text,
                "[{name}-{port}]\nlocal_address = 127.0.0.1\nserver_address = localhost\n\
                 server_port = {upstream}\n{more}"
            )?;
        }
        for number in 0..SECTIONS {
            writeln!(
                text,
                "[{}]\ntoken_url = https://localhost:{}/organizations/oauth2/v2.0/token\n\
                 oauth2_scope = https://outlook.office.com/.default\noauth2_flow = password\n\
                 client_id = 11111111-2222-3333-4444-555555555555\nredirect_uri = http://localhost\n",
                user(number),
                up.https
            )?;
        }
        let mut command = Command::new(&programs.emailproxy);
        command
            .arg("--no-gui")
            .arg("--config-file")
            .arg(self.file("emailproxy.config", &text)?)
            .arg("--log-file")
            .arg(self.folder.join("emailproxy.log"))
            .env("SSL_CERT_FILE", self.authority);
        Ok(command)
    }

    /// Its login proxy in its fast mode, one process for many logins, with a token in its password database.
    ///
    /// It trusts the stub's authority by `ssl_ca`: `ssl_client_ca_file` is not used by login processes with `ssl = no`.
    fn dovecot(&self) -> Result<Command> {
        let folder = self.folder.display();
        let token = "t".repeat(1600);
        let mut services = String::new();
        for (service, port) in
            [("imap", self.ports.imap), ("pop3", self.ports.pop3), ("submission", self.ports.smtp)]
        {
            writeln!(
                services,
                "service {service}-login {{\n inet_listener {service} {{\n port = {port}\n }}\n \
                 inet_listener {service}s {{\n port = 0\n }}\n service_count = 0\n process_min_avail = 2\n \
                 client_limit = 10000\n vsz_limit = 4G\n}}"
            )?;
        }
        let up = self.upstream;
        let text = format!(
            "protocols = imap pop3 submission\nlisten = 127.0.0.1\nbase_dir = {folder}/run\nstate_dir = {folder}/state\n\
             log_path = {folder}/dovecot.log\nssl = no\ndisable_plaintext_auth = no\n\
             ssl_ca = <{ca}\nssl_require_crl = no\nssl_min_protocol = TLSv1.3\n\
             default_client_limit = 20000\nsubmission_relay_host = 127.0.0.1\nhostname = localhost\n{services}\
             passdb {{\n driver = static\n args = nopassword=y proxy=y host=localhost hostip=127.0.0.1 \
             port=%{{if;%s;eq;imap;{imap};%{{if;%s;eq;pop3;{pop3};{smtp}}}}} ssl=yes proxy_mech=XOAUTH2 pass={token}\n}}\n",
            ca = self.authority.display(),
            imap = up.imap,
            pop3 = up.pop3,
            smtp = up.smtp,
        );
        let mut command = Command::new("/usr/sbin/dovecot");
        command.arg("-F").arg("-c").arg(self.file("dovecot.conf", &text)?);
        Ok(command)
    }

    /// `stream` for mail, a reverse proxy with connections kept alive for EWS.
    fn nginx(&self) -> Result<Command> {
        let folder = self.folder.display();
        let ca = self.authority.display();
        let mut mail = String::new();
        for (_, port, upstream) in self.pairs() {
            writeln!(
                mail,
                " server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass 127.0.0.1:{upstream}; }}"
            )?;
        }
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nworker_processes 2;\n\
             worker_rlimit_nofile 20000;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 20000; }}\n\
             stream {{\n proxy_ssl on;\n proxy_ssl_protocols TLSv1.3;\n proxy_ssl_verify on;\n \
             proxy_ssl_trusted_certificate {ca};\n proxy_ssl_name localhost;\n proxy_ssl_server_name on;\n \
             proxy_ssl_session_reuse on;\n proxy_timeout 1h;\n tcp_nodelay on;\n{mail}}}\n\
             http {{\n access_log off;\n client_body_temp_path {folder}/body;\n proxy_temp_path {folder}/proxy;\n \
             fastcgi_temp_path {folder}/fastcgi;\n uwsgi_temp_path {folder}/uwsgi;\n scgi_temp_path {folder}/scgi;\n \
             upstream ews {{ server 127.0.0.1:{https}; keepalive 64; keepalive_requests 100000; }}\n \
             keepalive_requests 100000;\n \
             server {{\n  listen 127.0.0.1:{own} backlog=4096;\n  location / {{\n   proxy_pass https://ews;\n   \
             proxy_http_version 1.1;\n   proxy_set_header Connection \"\";\n   proxy_set_header Host localhost;\n   \
             proxy_ssl_protocols TLSv1.3;\n   proxy_ssl_verify on;\n   proxy_ssl_trusted_certificate {ca};\n   \
             proxy_ssl_name localhost;\n   proxy_ssl_server_name on;\n   proxy_max_temp_file_size 0;\n  }}\n }}\n}}\n",
            https = self.upstream.https,
            own = self.ports.https,
        );
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-e").arg(self.folder.join("error.log")).arg("-c").arg(self.file("nginx.conf", &text)?);
        Ok(command)
    }

    fn haproxy(&self) -> Result<Command> {
        let mut text = "global\n ulimit-n 20000\n nbthread 2\n maxconn 9980\n tune.ssl.cachesize 20000\n\
                        defaults\n mode tcp\n timeout connect 15s\n timeout client 1h\n timeout server 1h\n maxconn 9980\n backlog 4096\n"
            .to_owned();
        for (name, port, upstream) in self.pairs() {
            writeln!(
                text,
                "listen {name}\n bind 127.0.0.1:{port}\n server upstream 127.0.0.1:{upstream} ssl verify required \
                 ca-file {} sni str(localhost) verifyhost localhost ssl-min-ver TLSv1.3",
                self.authority.display()
            )?;
        }
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(self.file("haproxy.cfg", &text)?);
        Ok(command)
    }

    fn stunnel(&self) -> Result<Command> {
        let mut text = format!(
            "foreground = yes\npid =\nsyslog = no\ndebug = warning\nclient = yes\nCAfile = {}\nverifyChain = yes\n\
             checkHost = localhost\nsslVersionMin = TLSv1.3\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
             TIMEOUTidle = 43200\n",
            self.authority.display()
        );
        for (name, port, upstream) in self.pairs() {
            writeln!(
                text,
                "[{name}]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{upstream}\nsni = localhost"
            )?;
        }
        let mut command = Command::new("/usr/bin/stunnel");
        command.arg(self.file("stunnel.conf", &text)?);
        Ok(command)
    }
}
