"""Make a Kafka client, and know whether the brokers are up."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import config
from cdc import listener, logs
from cdc.health import HEALTH
from cdc.postgres import WrongSetting

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)
Client = TypeVar("Client")

NO_BROKER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)  # as what a call raises
BROKER_GRACE = 5.0  # seconds after their return in which brokers may not know all their topics yet

TOPIC_REFUSED, GROUP_REFUSED = KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED
NO_RIGHT = (TOPIC_REFUSED, GROUP_REFUSED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)

COMPLAINT_GRACE = 2.0  # seconds after which a refused login is taken for a wrong setting
LOGIN_WAIT = 8.0  # seconds for the brokers to let us in, or to refuse us for longer than COMPLAINT_GRACE
ASK_AGAIN = 3.0  # seconds between two checks of the brokers' ports

TIMES = re.compile(r" ?\(after \d+ms.*\)|\d+ identical.*")
UNKNOWN_SETTING = re.compile(r'No such configuration property: "(.*)"')
NOT_TEXT = ("logger", "default.topic.config", "opaque", "interceptors")  # settings that only a program can give


@dataclass
class Brokers:
    """Whether the brokers are up, as the Kafka client's callbacks and our calls find out."""

    down: bool = False
    warned: bool = False
    answered: bool = False  # whether they have ever answered
    complaint: str = ""  # the first refusal of our login or encryption by brokers that have never answered
    complained: float = 0.0  # when (time.monotonic)
    wrong_setting: str = ""  # such a refusal that stays
    fatal: str = ""  # the error after which the client is of no more use
    examined: float = float("-inf")  # when we last checked their ports (time.monotonic)
    up_since: float = float("-inf")  # when they came back (time.monotonic)
    bootstrap: str = field(default_factory=lambda: config.KAFKA["bootstrap.servers"])
    logged: set[str] = field(default_factory=set)

    def on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.mark_down()
        elif error.fatal() or error.code() == KafkaError._FATAL:
            self.fatal = error.str()
        elif settings := suspicious_settings(error):
            self.complain(error.str(), settings)
        elif error.code() == KafkaError._RESOLVE:
            self.warn_once(error.str())
        elif error.code() in NO_RIGHT:
            self.warn_no_right(error)
        else:
            log.debug("Kafka: %s", error.str())

    def complain(self, text: str, settings: str) -> None:
        """Note that our login, or our encryption, is refused. Some brokers do so for a moment while they start."""
        text = f"{TIMES.sub('', text)}; check {settings}"
        if self.answered:
            self.warn_once(text)
        elif not self.complaint:
            self.complaint, self.complained = text, time.monotonic()
            self.examine()
        elif time.monotonic() - self.complained > COMPLAINT_GRACE:
            self.wrong_setting = f"Kafka: {self.complaint}"

    def warn_no_right(self, error: KafkaError) -> None:
        """Warn that the consumer may not read. The client tries again by itself."""
        group = error.code() == GROUP_REFUSED
        what = f"group {config.KAFKA_GROUP_ID}" if group else f"topic {config.KAFKA_TOPIC}"
        self.warn_once(f"{what}: {error.str()}{advise(error, f'READ on {what}')}; waiting")

    def warn_once(self, text: str) -> None:
        """Log what the client says, each text once: it repeats some of them many times a second."""
        essence = TIMES.sub("", text)
        if essence not in self.logged:
            self.logged.add(essence)
            log.warning("Kafka: %s", text)

    def note(self, error: KafkaError) -> None:
        """Learn from the error of a call whether the brokers answer. The client's own errors are below 0."""
        if error.code() in NO_BROKER:  # it may also be one broker that does not answer
            self.doubt(make_client(AdminClient, {}, self))
        elif error.code() > 0:
            self.mark_up()

    def mark_down(self) -> None:
        """Brokers that come and go while they start are one outage: warn again only once `probe` finds none."""
        if not self.answered:
            self.examine()
        if not self.down and not self.unsteady():
            self.warn()
        self.down = True

    def examine(self) -> None:
        """Find out whether the brokers are there, and do not fit our settings. No waiting mends that."""
        if not self.wrong_setting and time.monotonic() - self.examined > ASK_AGAIN:
            fault = listener.find_fault()
            self.examined, self.wrong_setting = time.monotonic(), f"Kafka: {fault}" if fault else ""

    def warn(self) -> None:
        if not self.warned and not self.complaint and not self.wrong_setting:
            self.warned = True
            HEALTH.mark_down(self, "Kafka")
            log.warning("Kafka at %s does not answer; waiting", self.bootstrap)

    def mark_up(self) -> None:
        self.answered, self.complaint = True, ""
        HEALTH.connected.add("kafka")
        HEALTH.mark_up(self)
        if self.warned:
            log.info("Kafka at %s answers again", self.bootstrap)
        if self.down:
            self.down, self.warned, self.up_since = False, False, time.monotonic()
            self.logged.clear()

    def unsteady(self) -> bool:
        """Whether the brokers are down, or up for less than BROKER_GRACE."""
        return self.down or time.monotonic() - self.up_since < BROKER_GRACE

    def doubt(self, client: AdminClient) -> None:
        """Find out whether it is the brokers that are down, after a call without an answer."""
        try:
            find_controller(client)
        except KafkaException:
            self.mark_down()

    def probe(self, client: Consumer) -> None:
        """Find out whether the brokers are up again."""
        try:
            find_controller(client)
        except KafkaException:
            self.warn()
        else:
            self.mark_up()


def find_controller(client: AdminClient | Consumer) -> None:
    """Ask any broker which one is the controller. Raises KafkaException if none answers.

    By itself the client goes on for minutes to ask the one that was it, even if that broker is down.
    """
    client.list_topics(config.KAFKA_TOPIC, timeout=1)


def wait_for_login(client: Any, brokers: Brokers) -> None:
    """Return once the brokers have let us in, or do not answer, which is the caller's to report.

    client: a Producer or AdminClient that is new. Raises WrongSetting if they refuse our login or encryption.
    """
    before, end = (brokers.down, brokers.warned), time.monotonic() + LOGIN_WAIT
    brokers.warned = True  # says nothing itself
    while time.monotonic() < end:
        try:
            client.list_topics(timeout=0.5)
        except KafkaException:
            brokers.mark_down()
        else:
            brokers.answered = True
            break
        client.poll(0.1)
        if brokers.wrong_setting:
            raise WrongSetting(brokers.wrong_setting)
        if not brokers.complaint:
            break
    brokers.down, brokers.warned = before


def suspicious_settings(error: KafkaError) -> str:
    """Return which settings may be the reason that brokers refuse our login or encryption, if they do."""
    if error.code() == KafkaError._AUTHENTICATION:
        return "KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
    if error.code() == KafkaError._SSL or "SSL handshake failed" in error.str():
        return "KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_…"
    return ""


def advise(error: KafkaError, right: str) -> str:
    """Return what to do about an error of Kafka, as the end of a line; right: what else is missing, such as an ACL."""
    if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return "; run python admin.py"
    if error.code() in NO_RIGHT:
        user = config.KAFKA.get("sasl.username")
        return f"; {f'User:{user}' if user else 'the user that we log in as'} needs the right {right}"
    return ""


def make_client(kind: Callable[..., Client], settings: dict[str, Any], brokers: Brokers) -> Client:
    """Return a client of this kind (Producer, Consumer, AdminClient). What the environment sets goes over settings.

    A variable that the client does not know as a setting is named once, and dropped from config.KAFKA. Raises
    WrongSetting for a value that the client refuses.
    """
    unknown = [key for key in NOT_TEXT if config.KAFKA.pop(key, None)]
    client = None
    while client is None:
        chosen = {**settings, **config.KAFKA, "error_cb": brokers.on_error}
        try:
            client = kind(chosen, logger=logging.getLogger("librdkafka"))
        except (KafkaException, ValueError, TypeError) as error:
            reason = " ".join((error.args[0].str() if isinstance(error, KafkaException) else str(error)).split())
            found = UNKNOWN_SETTING.fullmatch(reason)
            if not found or config.KAFKA.pop(found[1], None) is None:
                raise WrongSetting(f"Kafka refuses a setting: {reason} (from a KAFKA_… variable?)") from None
            unknown.append(found[1])
    if unknown:
        names = ", ".join(f"KAFKA_{key.upper().replace('.', '_')}" for key in unknown)
        print(logs.as_line(f"{names}: ignored, the Kafka client has no such setting", "WARNING"), file=sys.stderr)
    return client
