-- Roles with no more rights than their part of a migration needs. Run it as the owner of the table or a superuser, after
-- `bge-pipeline expand`, which makes the two tables beside it; repeat it after the next expand:
--
--   psql -v schema=public -v table=segments -v column=embedding -f deploy/roles.sql "$DATABASE_URL"
--
-- bge_planner   plan, status, doctor, search: reads and changes nothing
-- bge_filler    backfill and embed: writes vectors, and what is recorded beside them
-- the owner     expand, swap, rollback, retire: PostgreSQL lets nobody else alter a table
--
-- Give them to those who log in: GRANT bge_filler TO your_worker;
\set ON_ERROR_STOP 1
\set quarantine :table _ :column _quarantine
\set journal :table _ :column _journal
SELECT format('CREATE ROLE %I NOLOGIN', wanted) FROM unnest(ARRAY['bge_planner', 'bge_filler']) wanted
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) \gexec
GRANT USAGE ON SCHEMA :"schema" TO bge_planner, bge_filler;
GRANT SELECT ON :"schema".:"table", :"schema".:"quarantine", :"schema".:"journal" TO bge_planner, bge_filler;
GRANT UPDATE ON :"schema".:"table" TO bge_filler;
GRANT INSERT, UPDATE, DELETE ON :"schema".:"quarantine" TO bge_filler;
GRANT INSERT, UPDATE ON :"schema".:"journal" TO bge_filler;
-- A backfill stages vectors in a temporary table; plan measures writing in one.
SELECT format('GRANT TEMPORARY ON DATABASE %I TO bge_planner, bge_filler', current_database()) \gexec
