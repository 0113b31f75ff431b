"""The PostgreSQL store's tables, its one function that writes, and their versions.

All is in the schema ``nemo``. Text is compared by code points (collation C), as everywhere else in NEMO.
"""

from __future__ import annotations

from typing import Any

from metaos.store.log import StoreFailed

#: Says who waits for what (``pg_locks``): hubs hold it shared, whoever moves the state elsewhere alone.
IN_USE = 0x4E454D4F
CHANNEL = "nemo_log"
#: Why no hub may open a database: it is being filled, or was moved elsewhere; else nothing.
MOVED = "SELECT max(why) FROM nemo.moved"

_TABLES = """
CREATE TABLE nemo.state (oldest bigint NOT NULL, revision bigint NOT NULL) WITH (fillfactor = 20);
INSERT INTO nemo.state VALUES (0, 0);
CREATE TABLE nemo.log (
    revision bigint PRIMARY KEY,
    key text COLLATE "C" NOT NULL,
    type text NOT NULL,
    create_revision bigint NOT NULL,
    previous_revision bigint,
    value bytea NOT NULL
);
CREATE INDEX log_by_key ON nemo.log (key, revision);
CREATE TABLE nemo.current (
    key text COLLATE "C" PRIMARY KEY,
    revision bigint NOT NULL,
    create_revision bigint NOT NULL
) WITH (fillfactor = 70);
CREATE TABLE nemo.writer (
    name text PRIMARY KEY,
    batch bigint NOT NULL,
    outcome bigint[] NOT NULL,
    time timestamptz NOT NULL
) WITH (fillfactor = 20);
CREATE TABLE nemo.claim (name text COLLATE "C" PRIMARY KEY, revision bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE nemo.moved (why text NOT NULL);
CREATE TABLE nemo.ledger (
    position bigint PRIMARY KEY,
    "end" bigint NOT NULL,
    count bigint NOT NULL,
    previous bytea NOT NULL,
    hash bytea NOT NULL,
    header bytea NOT NULL,
    lines bytea NOT NULL
);
CREATE INDEX ledger_by_end ON nemo.ledger ("end", position, count);
CREATE TABLE nemo.ledger_site (site text COLLATE "C" PRIMARY KEY, sequence bigint NOT NULL, "end" bigint NOT NULL);
CREATE TABLE nemo.ledger_head (position bigint NOT NULL, hash bytea NOT NULL);
INSERT INTO nemo.ledger_head VALUES (0, decode(repeat('00', 32), 'hex'));
CREATE TABLE nemo.ledger_checkpoint (
    number bigint PRIMARY KEY,
    first bigint NOT NULL,
    last bigint NOT NULL,
    body bytea NOT NULL,
    signature bytea NOT NULL
);
CREATE INDEX ledger_checkpoint_by_last ON nemo.ledger_checkpoint (last);
"""

#: One call is one transaction and one batch of writes. Whoever has locked the row of ``state`` gives the next revisions, and the
#: lock goes when the commit can be seen: revisions have no gaps, and none can be seen before a smaller one. A batch that is known
#: is not done again, its outcome is told; one that comes after a later one of its hub is not done, as nobody waits for it: its
#: connection had broken, and the hub has said that its outcome is not known. ``outcome`` is the revision, 0 where the revision
#: was another, -1 where its guard has gone, -2 where another of its claim came between; ``revision`` and ``value`` are what was
#: there before (of a known batch: what is there now).
_WRITE = """
CREATE OR REPLACE FUNCTION nemo.write(
    writer_name text, writer_batch bigint,
    types text[], keys text[], vals bytea[], expected bigint[],
    guards text[], guard_revisions bigint[], claims text[], seen bigint[]
) RETURNS TABLE (n bigint, outcome bigint, revision bigint, create_revision bigint, value bytea, known boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    start bigint;
    forgotten bigint;
    next bigint;
    call record;
    present record;
    told bigint[];
    outcomes bigint[] := '{}';
BEGIN
    SELECT s.revision, s.oldest INTO start, forgotten FROM nemo.state s FOR UPDATE;
    SELECT w.outcome INTO told FROM nemo.writer w WHERE w.name = writer_name AND w.batch = writer_batch;
    IF told IS NOT NULL THEN
        RETURN QUERY
            SELECT c.n, told[c.n], p.revision, p.create_revision, l.value, true
            FROM unnest(keys) WITH ORDINALITY AS c (key, n)
            LEFT JOIN nemo.current p ON p.key = c.key LEFT JOIN nemo.log l ON l.revision = p.revision ORDER BY c.n;
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM nemo.writer w WHERE w.name = writer_name AND w.batch > writer_batch) THEN
        RETURN;
    END IF;
    next := start;
    FOR call IN
        SELECT * FROM unnest(types, keys, vals, expected, guards, guard_revisions, claims, seen)
        WITH ORDINALITY AS c (type, key, value, expected, guard, guard_revision, claim, seen, n) ORDER BY c.n
    LOOP
        n := call.n;
        known := false;
        revision := NULL;
        create_revision := NULL;
        value := NULL;
        IF call.guard <> '' AND NOT EXISTS (
            SELECT 1 FROM nemo.current c WHERE c.key = call.guard AND c.revision = call.guard_revision
        ) THEN
            outcome := -1;
        ELSIF call.claim <> '' AND (
            call.seen < forgotten OR EXISTS (
                SELECT 1 FROM nemo.claim c WHERE c.name = ANY (string_to_array(call.claim, E'\\n')) AND c.revision > call.seen
            )
        ) THEN
            outcome := -2;
        ELSE
            SELECT c.revision, c.create_revision, l.value INTO present
            FROM nemo.current c JOIN nemo.log l ON l.revision = c.revision WHERE c.key = call.key;
            revision := present.revision;
            create_revision := present.create_revision;
            value := present.value;
            IF coalesce(revision, 0) <> call.expected OR (revision IS NULL AND call.type <> 'CREATE') THEN
                outcome := 0;
            ELSE
                next := next + 1;
                outcome := next;
                INSERT INTO nemo.log VALUES (next, call.key, call.type, coalesce(create_revision, next), revision, call.value);
                IF call.type = 'DELETE' THEN
                    DELETE FROM nemo.current c WHERE c.key = call.key;
                ELSIF revision IS NULL THEN
                    INSERT INTO nemo.current VALUES (call.key, next, next);
                ELSE
                    UPDATE nemo.current c SET revision = next WHERE c.key = call.key;
                END IF;
                IF call.claim <> '' THEN
                    INSERT INTO nemo.claim
                        SELECT DISTINCT c.claim, next FROM unnest(string_to_array(call.claim, E'\\n')) AS c (claim)
                        ON CONFLICT (name) DO UPDATE SET revision = EXCLUDED.revision;
                END IF;
            END IF;
        END IF;
        outcomes := outcomes || outcome;
        RETURN NEXT;
    END LOOP;
    INSERT INTO nemo.writer VALUES (writer_name, writer_batch, outcomes, now())
        ON CONFLICT (name) DO UPDATE SET batch = EXCLUDED.batch, outcome = EXCLUDED.outcome, time = EXCLUDED.time;
    IF next > start THEN
        UPDATE nemo.state SET revision = next;
        PERFORM pg_notify('nemo_log', next::text);
    END IF;
END $$;
"""
#: One script per schema version, applied in order; ``nemo.version`` says how many have been. Since the second a write may have
#: several claims, one in each line.
MIGRATIONS: tuple[str, ...] = (_TABLES + _WRITE, _WRITE)
#: Outcomes of batches are kept so long for hubs that come back for them; claims as long as history, as nobody may know less.
_TIDY = """
DELETE FROM nemo.writer WHERE time < now() - interval '1 day';
DELETE FROM nemo.claim c USING nemo.state s WHERE c.revision < s.oldest"""


async def prepare(connection: Any, shown: str) -> None:
    """Makes or migrates the tables; one hub does it, others wait. Raises ``StoreFailed`` where they are of a newer release."""
    if await connection.fetchval("SHOW server_encoding") != "UTF8":
        raise StoreFailed(f"the database {shown} is not encoded in UTF8: make another with CREATE DATABASE … ENCODING 'UTF8'")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", IN_USE + 1)
        if await connection.fetchval("SELECT to_regclass('nemo.version') IS NULL"):
            await connection.execute("CREATE SCHEMA IF NOT EXISTS nemo; CREATE TABLE nemo.version (version int NOT NULL)")
            await connection.execute("INSERT INTO nemo.version VALUES (0)")
        version = await connection.fetchval("SELECT version FROM nemo.version")
        if version > len(MIGRATIONS):
            raise StoreFailed(
                f"the database {shown} was written by a newer NEMO (schema {version}, this one knows {len(MIGRATIONS)}): "
                "upgrade this one, or restore a backup"
            )
        for script in MIGRATIONS[version:]:
            await connection.execute(script)
        await connection.execute("UPDATE nemo.version SET version = $1", len(MIGRATIONS))
        await connection.execute(_TIDY)
