"""The whole way, from the source's employees to the destination's.

The names below have moved to harness/; they stay here until every test imports them from there.
"""

from harness import ROOT as ROOT
from harness.database import ALWAYS_NOTIFY as ALWAYS_NOTIFY
from harness.database import BACKWARDS as BACKWARDS
from harness.database import ROWS as ROWS
from harness.database import WAITING as WAITING
from harness.database import WATCH as WATCH
from harness.database import administer as administer
from harness.database import database_url as database_url
from harness.database import query as query
from harness.kafka import client_settings as client_settings
from harness.pipeline import Pipeline as Pipeline
from harness.pipeline import new_pipeline as made  # noqa: F401
from harness.script import Script as Script
from harness.script import peak_memory as peak_memory
from harness.waiting import wait_until as wait_until
