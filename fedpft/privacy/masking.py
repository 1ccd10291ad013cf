"""PURE: the sum of many vectors without any of them: Bonawitz et al. 2017, against a server that is honest but curious.

    step     each party u                                                        the server
    keys     two X25519 key pairs -> both public keys                            passes all keys on
    shares   shares of its mask key s_u and its self mask b_u, one for each      passes each on to its holder,
             holder, encrypted to it                                             unreadable
    vectors  x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)      adds up; whoever sent one survives
    unmask   of each party one share: of b_v if it survived, of s_v if not       takes the masks that are left off

All modulo 2^64. s_uv is agreed on by X25519 and HKDF (SHA-256), PRG is ChaCha20's stream, shares travel in
ChaCha20-Poly1305. Nobody ever gives both shares of one party, so that a threshold of more than half keeps both secrets
from coming together.

A party's key material is derived from (seed, round, client): a run can be repeated, and no number depends on where a
client is played. So it is no secret from the machine that simulates; a deployment draws it from a secure generator.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpft.privacy.secret_shares import PRIME, SHARE_BYTES, combine, split, weights_at_zero
from fedpft.seeding import derive_seed

KEY_BYTES = 32
PUBLIC_BYTES = 2 * KEY_BYTES
"""Of a party's two public keys, of masks and of shares."""
SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Of the two shares for one holder, with the tag."""
_NONCE = bytes(12)  # every key is used once

Keys = Mapping[int, bytes]
"""Party -> its public keys, `PUBLIC_BYTES`."""


@dataclass(frozen=True)
class Party:
    """One client in one round."""

    seed: int
    round_index: int
    client_id: int

    @property
    def public_keys(self) -> bytes:
        """What the others may know."""
        return _public(self._secret("mask key")) + _public(self._secret("share key"))

    def sealed_shares(self, keys: Keys, threshold: int) -> dict[int, bytes]:
        """Return for each party, itself included, its shares of this party's two secrets; only it can read them."""
        holders, sealed = list(keys), {}
        shares = [self._split(name, holders, threshold) for name in ("self mask", "mask key")]
        for holder in holders:
            both = b"".join(of_secret[holder].to_bytes(SHARE_BYTES, "big") for of_secret in shares)
            sealed[holder] = self._channel(keys, self.client_id, holder).encrypt(_NONCE, both, None)
        return sealed

    def mask(self, vector: np.ndarray, keys: Keys) -> np.ndarray:
        """Return a vector, (D,) uint64, with this party's masks towards all others on it and its own."""
        masked = vector + expand(self._secret("self mask"), len(vector))
        private = self._secret("mask key")
        for sign, stream in _pairwise(self.client_id, private, keys, len(vector)):
            masked = masked + stream if sign > 0 else masked - stream
        return masked

    def reveal(self, sealed: Mapping[int, bytes], keys: Keys, survivors: Set[int], threshold: int) -> dict[int, bytes]:
        """Return of each party one share: of its self mask if it survived, else of its mask key.

        Args:
            sealed: what the others sent this party, by sender.
            keys: of all parties whose masks are on somebody's vector.
            survivors: those whose vectors have arrived.
            threshold: fewer survivors get no answer.

        Raises:
            ValueError: a question that an honest server does not ask; one line.

        """
        if len(survivors) < threshold or not survivors <= keys.keys() or self.client_id not in survivors:
            allowed = f"{threshold} or more, its own among them"
            raise ValueError(f"asked to take the masks off {len(survivors)} vectors, allowed: {allowed}")
        revealed = {}
        for sender in keys:
            both = self._channel(keys, sender, self.client_id).decrypt(_NONCE, sealed[sender], None)
            revealed[sender] = both[:SHARE_BYTES] if sender in survivors else both[SHARE_BYTES:]
        return revealed

    def _secret(self, name: str) -> bytes:
        drawn = derive_seed(self.seed, "secure_aggregation", self.round_index, self.client_id)
        return _hkdf(drawn.to_bytes(8, "big"), name)

    def _split(self, name: str, holders: Sequence[int], threshold: int) -> dict[int, int]:
        # 48 bytes modulo a prime of 33: as good as uniform
        drawn = expand(self._secret(f"polynomial of {name}"), 6 * (threshold - 1)).tobytes()
        coefficients = [int.from_bytes(drawn[i : i + 48], "big") % PRIME for i in range(0, len(drawn), 48)]
        return split(int.from_bytes(self._secret(name), "big"), coefficients, holders)

    def _channel(self, keys: Keys, sender: int, holder: int) -> ChaCha20Poly1305:
        other = holder if sender == self.client_id else sender
        agreed = _agree(self._secret("share key"), keys[other][KEY_BYTES:])
        return ChaCha20Poly1305(_hkdf(agreed, f"shares of {sender} for {holder}"))


def expand(key: bytes, size: int) -> np.ndarray:
    """Return (size,) uint64 of ChaCha20's stream: noise to whoever has not the key, of which each is used once."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, dtype="<u8")


def unmask(
    total: np.ndarray, keys: Keys, survivors: Set[int], revealed: Mapping[int, Mapping[int, bytes]], threshold: int
) -> np.ndarray:
    """Return the sum of the survivors' vectors, (D,) uint64, given that of their masked ones.

    Args:
        total: the masked vectors' sum.
        keys: of all parties whose masks are on the survivors' vectors.
        survivors: whose vectors were added.
        revealed: holder -> what it gave, see :meth:`Party.reveal`.
        threshold: of the shares.

    Raises:
        ValueError: too few holders; one line.

    """
    if len(revealed) < threshold:
        raise ValueError(f"{len(revealed)} clients gave shares, allowed: {threshold} or more")
    weights = weights_at_zero(sorted(revealed)[:threshold])
    for party in keys:
        shares = {holder: int.from_bytes(revealed[holder][party], "big") for holder in weights}
        secret = combine(shares, weights).to_bytes(KEY_BYTES, "big")
        if party in survivors:
            total = total - expand(secret, len(total))
            continue
        for sign, stream in _pairwise(party, secret, {other: keys[other] for other in survivors}, len(total)):
            total = total + stream if sign > 0 else total - stream  # what each of them has with the other sign
    return total


def _pairwise(party: int, private: bytes, keys: Keys, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the sign and the stream of a party's mask towards each other one."""
    for other, public in keys.items():
        if other != party:
            key = _hkdf(_agree(private, public[:KEY_BYTES]), f"mask of {min(party, other)} and {max(party, other)}")
            yield (1 if other > party else -1), expand(key, size)


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _agree(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def _hkdf(key: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"fedpft secure aggregation, {purpose}".encode()).derive(key)
