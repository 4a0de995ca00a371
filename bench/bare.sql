-- The source as first specified: the log without the two extra columns, a plain trigger, nobody to wake.
-- What the benchmarks compare with: bench/plain.py reads it, bench/capture.py weighs it.

CREATE TABLE employees (
    emp_id     SERIAL PRIMARY KEY,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT
);

CREATE TABLE emp_cdc (
    cdc_id     BIGSERIAL PRIMARY KEY,
    emp_id     INT,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT,
    action     VARCHAR(100)
);

CREATE FUNCTION employee_cdc_trigger_func() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (OLD.emp_id, OLD.first_name, OLD.last_name, OLD.dob, OLD.city, OLD.salary, TG_OP);
    ELSE
        INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (NEW.emp_id, NEW.first_name, NEW.last_name, NEW.dob, NEW.city, NEW.salary, TG_OP);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER employee_cdc_trigger AFTER INSERT OR UPDATE OR DELETE ON employees
    FOR EACH ROW EXECUTE FUNCTION employee_cdc_trigger_func();
