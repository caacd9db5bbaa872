"""Python's own imaplib, poplib and smtplib, as scripts and ticket systems use them: user name and password.

stdlib_mail.py <imap-login|imap-plain|imap-idle|pop3|smtp-login|smtp-plain> <port> <user> <password> [starttls|tls] [ca.pem]
Prints one line: `ok …` or `refused …`; exit code 0, 3 when refused.
"""

import imaplib
import poplib
import smtplib
import ssl
import sys

HOST = "localhost"


def tls(mode, ca):
    return ssl.create_default_context(cafile=ca) if mode else None


def imap(kind, port, user, password, mode, context):
    if mode == "tls":
        box = imaplib.IMAP4_SSL(HOST, port, ssl_context=context, timeout=20)
    else:
        box = imaplib.IMAP4(HOST, port, timeout=20)
    if mode == "starttls":
        box.starttls(context)
    if kind == "imap-login":
        box.login(user, password)
    else:
        box.authenticate("PLAIN", lambda _: b"\0" + user.encode() + b"\0" + password.encode())
    _, (count,) = box.select("INBOX", readonly=True)
    _, found = box.search(None, "ALL")
    numbers = found[0].split()
    _, parts = box.fetch(numbers[-1], "(BODY[])") if numbers else (None, [(b"", b"")])
    box.logout()
    return f"{int(count)} messages, last {len(parts[0][1])} octets"


def pop3(port, user, password, mode, context):
    if mode == "tls":
        box = poplib.POP3_SSL(HOST, port, context=context, timeout=20)
    else:
        box = poplib.POP3(HOST, port, timeout=20)
    if mode == "starttls":
        box.stls(context)
    box.user(user)
    box.pass_(password)
    count, size = box.stat()
    lines = box.retr(count)[1] if count else []
    box.quit()
    return f"{count} messages, last {sum(len(line) + 2 for line in lines)} octets"


def smtp(kind, port, user, password, mode, context):
    if mode == "tls":
        out = smtplib.SMTP_SSL(HOST, port, context=context, timeout=20)
    else:
        out = smtplib.SMTP(HOST, port, timeout=20)
    if mode == "starttls":
        out.starttls(context=context)
    out.ehlo()
    out.user, out.password = user, password
    if kind == "smtp-login":
        out.auth("LOGIN", out.auth_login)
    else:
        out.auth("PLAIN", out.auth_plain)
    out.sendmail(user, [user], f"From: {user}\r\nTo: {user}\r\nSubject: smtplib says hello\r\n\r\n.dot\r\nbody\r\n")
    out.quit()
    return "sent"


def main():
    kind, port, user, password, *rest = sys.argv[1:]
    mode = rest[0] if rest else ""
    context = tls(mode, rest[1] if len(rest) > 1 else None)
    port = int(port)
    try:
        if kind.startswith("imap"):
            told = imap(kind, port, user, password, mode, context)
        elif kind == "pop3":
            told = pop3(port, user, password, mode, context)
        else:
            told = smtp(kind, port, user, password, mode, context)
    except (imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPAuthenticationError) as refused:
        print("refused", " ".join(str(refused).split()))
        sys.exit(3)
    print("ok", told)


main()
