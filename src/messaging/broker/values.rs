//! JSON and configuration values as AMQP has them.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::Value;

use super::short;
use crate::config::amqp::Field;

/// A header's value.
pub(super) fn header(value: &Value) -> AMQPValue {
    match value {
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap_or_default()),
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        other => AMQPValue::LongString(other.to_string().into()),
    }
}

/// Arguments of a queue.
pub(super) fn table(fields: &BTreeMap<String, Field>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert(short(name), field(value));
    }
    table
}

fn field(value: &Field) -> AMQPValue {
    match value {
        Field::Boolean(value) => AMQPValue::Boolean(*value),
        Field::Integer(value) => AMQPValue::LongLongInt(*value),
        Field::Float(value) => AMQPValue::Double(*value),
        Field::String(value) => AMQPValue::LongString(value.as_str().into()),
        Field::List(values) => AMQPValue::FieldArray(FieldArray::from(values.iter().map(field).collect::<Vec<_>>())),
        Field::Table(fields) => AMQPValue::FieldTable(table(fields)),
    }
}

/// A client property as text, which is all that administrators look at.
pub(super) fn text(value: &Field) -> String {
    match value {
        Field::Boolean(value) => value.to_string(),
        Field::Integer(value) => value.to_string(),
        Field::Float(value) => value.to_string(),
        Field::String(value) => value.clone(),
        Field::List(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        Field::Table(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name}={}", text(value)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}
