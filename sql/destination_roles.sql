-- Who may do what at the destination: the rights of cdc_consumer and cdc_monitor, exactly these, and none for PUBLIC.
--
-- Run by `db_setup.py --roles`, which makes the roles first, or by hand: psql -f sql/destination_roles.sql. Safe to run
-- again at any time. It is written for the schema public: db_setup.py writes CDC_SCHEMA there, by hand sed does.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;

-- 1. PUBLIC ------------------------------------------------------------------------------------------------------------

-- What everybody has, on the database, the schema and employees, goes to those who work here now: each role that has a
-- right on a table of the schema, or owns one, and whoever is connected. So the REVOKE below locks nobody out.
-- The same statement is in sql/source_roles.sql, and in no third file for \ir to include: psql goes on where such
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
REVOKE ALL ON public.employees, public.cdc_applied, public.cdc_verified FROM PUBLIC;

-- 2. Our roles ---------------------------------------------------------------------------------------------------------

-- Whatever they were given before goes first.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM cdc_consumer, cdc_monitor;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM cdc_consumer, cdc_monitor;
REVOKE ALL ON SCHEMA public FROM cdc_consumer, cdc_monitor;
REVOKE ALL ON DATABASE :"DBNAME" FROM cdc_consumer, cdc_monitor;

GRANT CONNECT ON DATABASE :"DBNAME" TO cdc_consumer, cdc_monitor;
GRANT USAGE ON SCHEMA public TO cdc_consumer, cdc_monitor;

-- consumer.py
GRANT SELECT, INSERT, UPDATE, DELETE ON public.employees TO cdc_consumer;
GRANT SELECT, INSERT, UPDATE ON public.cdc_applied TO cdc_consumer;

-- admin.py status and trace, verify.py; cdc_verified tells status when verify.py last found both sides equal
GRANT SELECT ON public.employees, public.cdc_applied, public.cdc_verified TO cdc_monitor;
COMMIT;
