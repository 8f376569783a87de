"""Bytes of what peers send: measured, or estimated from samples."""

import pytest

from p2pmesh.simulation.discrete.traffic import MEASURED, Traffic, size_of
from p2pmesh.wire.messages import Direct


def messages(count):
    return [Direct(payload="x" * (10 * (number % 7))) for number in range(count)]


def test_every_message_is_measured_unless_samples_will_do():
    traffic = Traffic()
    for message in messages(2000):
        traffic.sent(message, 2)
    assert sum(traffic.bytes) == traffic.control_bytes == 2 * sum(map(size_of, messages(2000)))
    assert traffic.by_name() == {"direct": 4000}


def test_samples_stand_for_those_that_are_not_measured():
    traffic = Traffic(samples=True)
    for message in messages(20 * MEASURED):
        traffic.sent(message, 1)
    assert sum(traffic.bytes) == pytest.approx(sum(map(size_of, messages(20 * MEASURED))), rel=0.05)
    assert traffic.by_name() == {"direct": 20 * MEASURED}


def test_few_messages_are_all_measured():
    traffic = Traffic(samples=True)
    for message in messages(MEASURED):
        traffic.sent(message, 1)
    assert sum(traffic.bytes) == sum(map(size_of, messages(MEASURED)))
