//! What transactions did to the state's tables, as lines of text that another replica can do after them: `["table",[values]]`
//! puts a row, `["table",{"del":[key]}]` takes one away. Triggers of the writing connection note it, so that no table's own
//! code knows of it, and what is rolled back is not noted. Blobs are hex; all tables are `STRICT`. Rows keep their order, so
//! `INSERT OR REPLACE`, which moves one, is not for these tables: `ON CONFLICT DO UPDATE` is.

use std::fmt::Write as _;

use rusqlite::{Connection, params_from_iter, types::Value as SqlValue};
use serde_json::Value;

/// A table as the journal sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    name: String,
    columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    blob: bool,
    key: bool,
}

/// A line that is none.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the state's journal {what}")]
pub(super) struct BadLine {
    line: usize,
    what: &'static str,
}

fn tables(connection: &Connection) -> rusqlite::Result<Vec<Table>> {
    let names = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid";
    let names: Vec<String> =
        connection.prepare(names)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut all = Vec::new();
    for name in names {
        let columns = "SELECT name, type, pk FROM pragma_table_info(?1) ORDER BY cid";
        let columns = connection
            .prepare(columns)?
            .query_map([&name], |row| {
                Ok(Column {
                    name: row.get(0)?,
                    blob: row.get::<_, String>(1)? == "BLOB",
                    key: row.get::<_, i64>(2)? > 0,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        all.push(Table { name, columns });
    }
    Ok(all)
}

impl Table {
    /// An expression for these columns of the row `of`, as a JSON array.
    fn array(&self, of: &str, keys_only: bool) -> String {
        let wanted = self.columns.iter().filter(|column| column.key || !keys_only);
        let values: Vec<_> = wanted
            .map(|column| {
                let value = format!("{of}\"{}\"", column.name);
                // hex() makes an empty text of NULL.
                if column.blob { format!("iif({value} IS NULL, NULL, hex({value}))") } else { value }
            })
            .collect();
        format!("json_array({})", values.join(", "))
    }

    fn put(&self, of: &str) -> String {
        format!("json_array('{}', {})", self.name, self.array(of, false))
    }

    fn del(&self, of: &str) -> String {
        format!("json_array('{}', json_object('del', {}))", self.name, self.array(of, true))
    }
}

/// Has this connection note what it does from now on.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    // In memory: nothing of it is to outlive the transaction.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    let mut script = String::from("CREATE TEMP TABLE journal (n INTEGER PRIMARY KEY, line TEXT NOT NULL);\n");
    for table in tables(connection)? {
        let name = &table.name;
        let (put, del) = (table.put("NEW."), table.del("OLD."));
        let keys = table.columns.iter().filter(|column| column.key);
        let moved: Vec<_> =
            keys.map(|column| format!("OLD.\"{0}\" IS NOT NEW.\"{0}\"", column.name)).collect();
        let del_if_moved = format!("{del} WHERE {}", moved.join(" OR "));
        let trigger = |event: &str, lines: &[&str]| {
            let inserts: Vec<_> =
                lines.iter().map(|line| format!("INSERT INTO journal (line) SELECT {line};")).collect();
            let inserts = inserts.join(" ");
            format!(
                "CREATE TEMP TRIGGER \"journal_{event}_{name}\" AFTER {event} ON main.\"{name}\" BEGIN {inserts} END;\n"
            )
        };
        script += &trigger("INSERT", &[&put]);
        script += &trigger("UPDATE", &[&del_if_moved, &put]);
        script += &trigger("DELETE", &[&del]);
    }
    connection.execute_batch(&script)
}

/// What the transaction has done so far, and forgets it.
pub(super) fn take(connection: &Connection) -> rusqlite::Result<String> {
    let mut text = String::new();
    let mut statement = connection.prepare_cached("SELECT line FROM temp.journal ORDER BY n")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let _ = writeln!(text, "{}", row.get_ref(0)?.as_str()?);
    }
    if !text.is_empty() {
        connection.execute("DELETE FROM temp.journal", [])?;
    }
    Ok(text)
}

/// Everything there is.
pub(super) fn dump(connection: &Connection) -> rusqlite::Result<String> {
    let mut text = String::new();
    for table in tables(connection)? {
        let all = format!("SELECT {} FROM main.\"{}\"", table.put(""), table.name);
        let mut statement = connection.prepare(&all)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let _ = writeln!(text, "{}", row.get_ref(0)?.as_str()?);
        }
    }
    Ok(text)
}

/// Does what the lines say, in a state that was just made.
///
/// # Errors
/// When a line is none, or does not fit the tables: nothing of it is kept.
pub(super) fn replay(connection: &mut Connection, lines: &str) -> rusqlite::Result<()> {
    // References point both ways while rows come in.
    connection.pragma_update(None, "foreign_keys", false)?;
    let transaction = connection.transaction()?;
    let tables = tables(&transaction)?;
    for (nth, line) in lines.lines().enumerate() {
        let bad = |what| rusqlite::Error::ToSqlConversionFailure(Box::new(BadLine { line: nth + 1, what }));
        let (name, change): (String, Value) = serde_json::from_str(line).map_err(|_| bad("is none"))?;
        let table = tables.iter().find(|table| table.name == name).ok_or_else(|| bad("is of no table"))?;
        let (values, keys_only) = match &change {
            Value::Array(values) => (values, false),
            Value::Object(object) => match object.get("del") {
                Some(Value::Array(values)) => (values, true),
                _ => return Err(bad("does neither put nor take away")),
            },
            _ => return Err(bad("does neither put nor take away")),
        };
        let columns: Vec<_> = table.columns.iter().filter(|column| column.key || !keys_only).collect();
        if columns.len() != values.len() {
            return Err(bad("has other columns"));
        }
        let values = columns.iter().zip(values).map(|(column, value)| of_json(column, value));
        let values: Vec<SqlValue> =
            values.collect::<Option<_>>().ok_or_else(|| bad("has a value of another type"))?;
        let names: Vec<_> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let statement = if keys_only {
            let equal: Vec<_> = names.iter().map(|name| format!("{name} IS ?")).collect();
            format!("DELETE FROM main.\"{name}\" WHERE {}", equal.join(" AND "))
        } else {
            let marks = vec!["?"; names.len()].join(", ");
            let keys: Vec<_> = table.columns.iter().filter(|column| column.key).collect();
            let keys: Vec<_> = keys.iter().map(|column| format!("\"{}\"", column.name)).collect();
            let set: Vec<_> = names.iter().map(|name| format!("{name} = excluded.{name}")).collect();
            // A row that is there keeps its place among the others.
            format!(
                "INSERT INTO main.\"{}\" ({}) VALUES ({marks}) ON CONFLICT ({}) DO UPDATE SET {}",
                table.name,
                names.join(", "),
                keys.join(", "),
                set.join(", ")
            )
        };
        transaction.prepare_cached(&statement)?.execute(params_from_iter(values))?;
    }
    transaction.commit()?;
    connection.pragma_update(None, "foreign_keys", true)
}

fn of_json(column: &Column, value: &Value) -> Option<SqlValue> {
    match value {
        Value::Null => Some(SqlValue::Null),
        Value::Number(number) => number.as_i64().map(SqlValue::Integer),
        Value::String(text) if column.blob => {
            let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
            if text.len() % 2 != 0 {
                return None;
            }
            (0..text.len()).step_by(2).map(pair).collect::<Option<_>>().map(SqlValue::Blob)
        }
        Value::String(text) => Some(SqlValue::Text(text.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "
        CREATE TABLE p (id TEXT PRIMARY KEY, b BLOB, n INTEGER) STRICT;
        CREATE TABLE c (a TEXT NOT NULL, b INTEGER NOT NULL, p TEXT REFERENCES p (id), PRIMARY KEY (a, b)) STRICT, WITHOUT ROWID;
    ";

    fn made() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    #[test]
    fn what_one_did_another_can_do_after_it_and_ends_with_the_same() {
        let mut one = made();
        begin(&one).unwrap();
        let mut all = String::new();
        for script in [
            "INSERT INTO p VALUES ('x', x'00ff', 1), ('y', NULL, NULL), ('\"quo''te', x'', -9223372036854775808)",
            "INSERT INTO c VALUES ('k', 1, 'x'), ('k', 2, 'y')",
            "UPDATE p SET n = 5, b = x'0102' WHERE id = 'x'",
            "UPDATE c SET b = 3 WHERE b = 2",
            "INSERT INTO p (id, n) VALUES ('x', 7) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
            "UPDATE p SET b = x'aa', n = 2 WHERE id = 'y'",
            "DELETE FROM c WHERE b = 1",
        ] {
            let transaction = one.transaction().unwrap();
            transaction.execute_batch(script).unwrap();
            all += &take(&transaction).unwrap();
            transaction.commit().unwrap();
        }
        let mut other = made();
        replay(&mut other, &all).unwrap();
        assert_eq!(dump(&other).unwrap(), dump(&one).unwrap());
        let mut third = made();
        replay(&mut third, &dump(&one).unwrap()).unwrap();
        assert_eq!(dump(&third).unwrap(), dump(&one).unwrap());
        assert_eq!(dump(&one).unwrap().lines().count(), 4);
    }

    #[test]
    fn what_was_undone_is_not_told() {
        let mut one = made();
        begin(&one).unwrap();
        let mut transaction = one.transaction().unwrap();
        let savepoint = transaction.savepoint().unwrap();
        savepoint.execute("INSERT INTO p (id) VALUES ('gone')", []).unwrap();
        savepoint.finish().unwrap();
        transaction.execute("INSERT INTO p (id) VALUES ('kept')", []).unwrap();
        let lines = take(&transaction).unwrap();
        assert_eq!(lines, "[\"p\",[\"kept\",null,null]]\n");
        assert_eq!(take(&transaction).unwrap(), "");
    }

    #[test]
    fn lines_that_are_none_change_nothing() {
        for line in [
            "x",
            "[]",
            "[\"sqlite_master\",[1]]",
            "[\"p\",[\"a\"]]",
            "[\"p\",[\"a\",\"zz\",1]]",
            "[\"p\",[\"a\",\"abc\",1]]",
            "[\"p\",{\"put\":[\"a\"]}]",
            "[\"p\",[\"a\",null,1.5]]",
            "[\"p\",[\"a\",null,\"text\"]]",
            "[\"p\",3]",
        ] {
            let mut state = made();
            replay(&mut state, &format!("[\"p\",[\"good\",null,1]]\n{line}\n")).unwrap_err();
            assert_eq!(dump(&state).unwrap(), "", "{line}");
        }
    }
}
