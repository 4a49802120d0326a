"""Personal data: what is masked, and what only looks like it."""

import pytest

from serin.core.pii import PiiMatch, find_pii, mask_pii


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jo.doe+shop@example.co.uk, please.", "Write to <EMAIL>, please."),
        ("Card 4111 1111 1111 1111, exp 12/27", "Card <CARD>, exp 12/27"),
        ("Amex 378282246310005.", "Amex <CARD>."),
        ("IBAN FR76 3000 6000 0112 3456 7890 189 MERCI", "IBAN <IBAN> MERCI"),
        ("pay to DE89370400440532013000.", "pay to <IBAN>."),
        ("Call +33 6 12 34 56 78 or (555) 123-4567", "Call <PHONE> or <PHONE>"),
        ("06.12.34.56.78, 020 7946 0958, +44 (0)20 7946 0958", "<PHONE>, <PHONE>, <PHONE>"),
        ("986.291.2294x751", "<PHONE>"),
    ],
)
def test_personal_data_is_masked_by_kind(text: str, masked: str) -> None:
    assert mask_pii(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "Order 113542617735902 of 2023-09-22 10:00",
        "Cancel 3707955617 and 00004587345 and 00123842",
        "4111 1111 1111 1112 is no card: its check digit is wrong",
        "FR7630006000011234567890188 is no IBAN",
        "12 345 678 euros, 1,299.00 to 2,000.00, 100 200 300",
        "host 192.168.100.200, SKU 978-3-16-148410-0, parcel 1Z999AA10123456784",
        "ORD-2024-123456, open 08-18, size 24 x 30 cm, 0.5 kg @ 3 euros",
    ],
)
def test_numbers_of_orders_dates_and_prices_stay(text: str) -> None:
    assert mask_pii(text) == (text, {})


def test_matches_carry_their_place_in_order_and_kinds_are_counted() -> None:
    text = "a@b.org, +33 6 12 34 56 78, c@d.org"
    assert find_pii(text) == [PiiMatch("email", 0, 7), PiiMatch("phone", 9, 26), PiiMatch("email", 28, 35)]
    assert mask_pii(text)[1] == {"email": 2, "phone": 1}


def test_what_is_public_stays() -> None:
    text = "Write to help@shop.example, I am jo@mail.example."
    assert mask_pii(text, {"help@shop.example"})[0] == "Write to help@shop.example, I am <EMAIL>."


def test_long_hostile_text_is_quick() -> None:
    import time

    started = time.monotonic()
    for text in ("+1 1 " * 20_000, "a" * 100_000 + "@", "AB12" * 25_000, "0" * 100_000, "a.b-" * 25_000 + "@"):
        find_pii(text)
    assert time.monotonic() - started < 5
