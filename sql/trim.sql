-- The destination: take deleted employees out of the gate cdc_applied, see "The gate grows" in docs/operations.md.
--
--   psql … -v oldest=OFFSET -f sql/trim.sql        OFFSET: the oldest one in the source's log

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL lock_timeout = '5s';
-- Consumers wait. Without the lock one of them could be waiting for a row of the gate that is deleted, and with it the
-- change that it was to let through.
LOCK TABLE public.cdc_applied IN SHARE ROW EXCLUSIVE MODE;
DELETE FROM public.cdc_applied AS applied
WHERE cdc_id < :oldest AND NOT EXISTS (SELECT FROM public.employees WHERE employees.emp_id = applied.emp_id);
COMMIT;
