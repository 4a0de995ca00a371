-- Who may do what at the source: the rights of cdc_producer and cdc_monitor, exactly these, and none for PUBLIC.
--
-- Run by `db_setup.py --roles`, which makes the roles first, or by hand: psql -f sql/source_roles.sql. Safe to run
-- again at any time. It is written for the schema public: db_setup.py writes CDC_SCHEMA there, by hand sed does.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;

-- 1. PUBLIC ------------------------------------------------------------------------------------------------------------

-- What everybody has, on the database, the schema and employees, goes to those who work here now: each role that has a
-- right on a table of the schema, or owns one, and whoever is connected. So the REVOKE below locks nobody out.
-- The same statement is in sql/destination_roles.sql, and in no third file for \ir to include: psql goes on where such
-- a file is missing, and would then only REVOKE.
DO $$
DECLARE
    one RECORD;
BEGIN
    FOR one IN
        WITH workers AS (
            SELECT grantee AS oid FROM pg_class, aclexplode(relacl) WHERE relnamespace = 'public'::regnamespace
            UNION SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION SELECT usesysid FROM pg_stat_activity WHERE datname = current_database()
        ), everybodys AS (
            SELECT format('%s ON DATABASE %I', privilege_type, datname) AS what
            FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
            WHERE datname = current_database() AND grantee = 0
            UNION ALL
            SELECT format('%s ON SCHEMA %I', privilege_type, nspname)
            FROM pg_namespace, aclexplode(nspacl)
            WHERE pg_namespace.oid = 'public'::regnamespace AND grantee = 0 AND privilege_type = 'USAGE'
            UNION ALL
            SELECT format('%s ON public.employees', privilege_type)
            FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = 'public.employees'::regclass AND grantee = 0
        )
        SELECT what, rolname FROM everybodys, workers JOIN pg_roles USING (oid)
        WHERE NOT rolsuper AND rolname NOT IN ('cdc_producer', 'cdc_consumer', 'cdc_monitor', 'cdc_capture')
    LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END
$$;
-- On the schema that is USAGE, and up to PostgreSQL 14 CREATE, too.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON public.employees, public.emp_cdc, public.cdc_position FROM PUBLIC;

-- 2. Our roles ---------------------------------------------------------------------------------------------------------

-- Whatever they were given before goes first.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM cdc_producer, cdc_monitor;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM cdc_producer, cdc_monitor;
REVOKE ALL ON SCHEMA public FROM cdc_producer, cdc_monitor;
REVOKE ALL ON DATABASE :"DBNAME" FROM cdc_producer, cdc_monitor;

GRANT CONNECT ON DATABASE :"DBNAME" TO cdc_producer, cdc_monitor;
GRANT USAGE ON SCHEMA public TO cdc_producer, cdc_monitor;

-- producer.py; UPDATE on the log and on its sequence is for the first start after a restore
GRANT SELECT, UPDATE, DELETE ON public.emp_cdc TO cdc_producer;
GRANT SELECT, UPDATE ON public.cdc_position TO cdc_producer;
GRANT SELECT, UPDATE ON SEQUENCE public.emp_cdc_cdc_id_seq TO cdc_producer;

-- admin.py status and trace, verify.py
GRANT SELECT ON public.employees, public.emp_cdc, public.cdc_position TO cdc_monitor;
GRANT SELECT ON SEQUENCE public.emp_cdc_cdc_id_seq TO cdc_monitor;
COMMIT;
