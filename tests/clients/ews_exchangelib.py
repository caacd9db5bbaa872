"""exchangelib against the EWS listener with Basic authentication, as legacy EWS applications use it.

ews_exchangelib.py <https-url of the EWS endpoint> <user> <password> <ca.pem> [impersonate <mailbox>]
Sends a message to the user itself, finds it and reads it. Prints `ok …`, or `refused …` (exit code 3).
With `impersonate` it names the mailbox in the SOAP header, as applications with a service account do.

ews_exchangelib.py <url> several <ca.pem> <user> <password> <user> <password> …
All of them at once, in this process. Each sends itself a message with an attachment of 3 MB and reads it back.
"""

import os
import sys

url, user, password, ca = sys.argv[1:5]
several = user == "several"
os.environ["REQUESTS_CA_BUNDLE"] = password if several else ca

from concurrent.futures import ThreadPoolExecutor  # noqa: E402

from exchangelib import BASIC, DELEGATE, IMPERSONATION, Account, Configuration, Credentials  # noqa: E402
from exchangelib import FileAttachment, Mailbox, Message  # noqa: E402
from exchangelib.errors import ErrorImpersonateUserDenied, UnauthorizedError  # noqa: E402
from exchangelib.protocol import FailFast  # noqa: E402
from exchangelib.version import EXCHANGE_2016, Version  # noqa: E402


def account_of(user, password, mailbox, access_type=DELEGATE):
    config = Configuration(
        service_endpoint=url,
        credentials=Credentials(user, password),
        auth_type=BASIC,
        version=Version(build=EXCHANGE_2016),
        retry_policy=FailFast(),
    )
    return Account(mailbox, config=config, autodiscover=False, access_type=access_type)


def large(user, password):
    account = account_of(user, password, user)
    content = f"{user} ".encode() * (3_000_000 // (len(user) + 1))
    message = Message(
        account=account, subject=f"for {user}", body="attached", to_recipients=[Mailbox(email_address=user)]
    )
    message.attach(FileAttachment(name="large.bin", content=content))
    message.send()
    found = [item for item in account.inbox.all() if item.subject == f"for {user}"]
    assert len(found) == 1, (user, found)
    assert found[0].attachments[0].content == content, user
    return user


try:
    if several:
        pairs = list(zip(sys.argv[4::2], sys.argv[5::2]))
        with ThreadPoolExecutor(len(pairs)) as pool:
            print("ok", *sorted(pool.map(lambda pair: large(*pair), pairs)))
        sys.exit(0)
    if sys.argv[5:6] == ["impersonate"]:
        account = account_of(user, password, sys.argv[6], IMPERSONATION)
        user = sys.argv[6]
    else:
        account = account_of(user, password, user)
    before = account.inbox.all().count()
    Message(account=account, subject="exchangelib says hello", body="Hello", to_recipients=[user]).send()
    items = list(account.inbox.all().only("subject", "text_body", "mime_content"))
    hello = [item for item in items if item.subject == "exchangelib says hello"]
    assert len(items) == before + 1, (before, len(items))
    assert hello and b"exchangelib says hello" in hello[-1].mime_content
except (UnauthorizedError, ErrorImpersonateUserDenied) as refused:
    print("refused", type(refused).__name__, " ".join(str(refused).split()))
    sys.exit(3)
print("ok", len(items), "messages, last:", items[-1].subject)
