"""exchangelib against the EWS listener with Basic authentication, as legacy EWS applications use it.

ews_exchangelib.py <https-url of the EWS endpoint> <user> <password> <ca.pem>
Sends a message to the user itself, finds it, reads it, deletes it. Prints `ok …`, or `refused …` (exit code 3).
"""

import os
import sys

url, user, password, ca = sys.argv[1:5]
os.environ["REQUESTS_CA_BUNDLE"] = ca

from exchangelib import BASIC, Account, Configuration, Credentials, Message  # noqa: E402
from exchangelib.errors import UnauthorizedError  # noqa: E402
from exchangelib.protocol import FailFast  # noqa: E402
from exchangelib.version import EXCHANGE_2016, Version  # noqa: E402

config = Configuration(
    service_endpoint=url,
    credentials=Credentials(user, password),
    auth_type=BASIC,
    version=Version(build=EXCHANGE_2016),
    retry_policy=FailFast(),
)
try:
    account = Account(user, config=config, autodiscover=False, access_type="delegate")
    before = account.inbox.all().count()
    Message(account=account, subject="exchangelib says hello", body="Hello", to_recipients=[user]).send()
    items = list(account.inbox.all().only("subject", "text_body", "mime_content"))
    hello = [item for item in items if item.subject == "exchangelib says hello"]
    assert len(items) == before + 1, (before, len(items))
    assert hello and b"exchangelib says hello" in hello[-1].mime_content
except UnauthorizedError as refused:
    print("refused", " ".join(str(refused).split()))
    sys.exit(3)
print("ok", len(items), "messages, last:", items[-1].subject)
