"""How a worker hears from a broker that comes and goes. `queue/app` names it in the setting `worker_consumer`."""

import logging
import time
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.connection import Connection

from batcher.broker.client import trouble
from batcher.broker.url import hide_password
from workers.queue.transport import Transport

logger = logging.getLogger(f"batcher.{__name__}")

#: Seconds between tries to reach the broker: the first pause, and the longest, which is also that after a refusal.
FIRST_PAUSE_S = 1
LONGEST_PAUSE_S = 5


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Celery's, with some differences.

    What comes from the broker is checked (`workers/queue/transport.py`). Its pauses between tries never grow beyond
    seconds; Celery's grow to half a minute, in which a worker is idle. A broker that answers and refuses (its memory is
    full, say) is tried again like one that is away; Celery would end the process, or ask several times a second. The
    log says once what the trouble of the broker is, and once that it is back.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: What the log says of the trouble that there is; empty without.
        self._reasons: set[str] = set()
        # It logs each loss of a connection as a warning, which is said here.
        logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.ERROR)
        # On each loss, about the default of a setting that we set. Celery's own set-up has just let it through.
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)

    def ensure_connected(self, conn: Connection) -> Connection:
        """`conn`, connected; blocks until it is, or the worker is to stop."""
        # Celery and kombu take a class of ours by a setting only where the URL names no socket.
        conn.transport_cls = Transport
        conn = conn.ensure_connection(  # type: ignore[no-untyped-call]
            lambda exc, pause_s: self._note_trouble(exc),
            self.app.conf.broker_connection_max_retries,
            interval_start=FIRST_PAUSE_S,
            interval_step=1,
            interval_max=LONGEST_PAUSE_S,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Drop the connection; the caller makes another. Blocks for a pause where the broker refused something."""
        self._note_trouble(exc)
        super().on_connection_error_after_connected(exc)
        if not isinstance(exc, self.connection_errors):
            for _ in range(LONGEST_PAUSE_S):
                maybe_shutdown()
                time.sleep(1)

    def on_ready(self) -> None:
        """Called when the worker waits for messages, the first time and after each trouble."""
        if self._reasons:
            self._reasons.clear()
            logger.warning("broker %s: it is back", hide_password(self.app.conf.broker_url))
        super().on_ready()

    def _note_trouble(self, exc: Exception) -> None:
        url = self.app.conf.broker_url
        reason = trouble(exc, url)
        if reason not in self._reasons:
            self._reasons.add(reason)
            logger.warning("broker %s: %s; trying on", hide_password(url), reason)
