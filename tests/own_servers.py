"""These names have moved to harness/; they stay here until every test imports them from there."""

from harness.own_servers import bring_back as bring_back
from harness.own_servers import own_servers as own_servers
from harness.proxy import Proxy as Proxy
