//! JSON and configuration values in the AMQP types that pika, the library of the existing client, gives them.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Map, Value};

use super::short;
use crate::config::amqp::Field;

/// The headers of a message. `priority` mirrors the property of that name, as the existing client does.
pub(super) fn headers(values: &Map<String, Value>, priority: Option<u8>) -> FieldTable {
    let mut headers = FieldTable::default();
    for (name, value) in values {
        headers.insert(short(name), header(value));
    }
    headers.insert("priority".into(), integer(priority.unwrap_or(0).into()));
    headers
}

fn header(value: &Value) -> AMQPValue {
    match value {
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => integer(number.as_i64().unwrap_or_default()),
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        other => AMQPValue::LongString(other.to_string().into()),
    }
}

/// 32 bits (`I`) where the number fits, else 64 (`l`), as in
/// [`pika.data.encode_value`](https://github.com/pika/pika/blob/main/pika/data.py).
fn integer(value: i64) -> AMQPValue {
    match i32::try_from(value) {
        Ok(value) => AMQPValue::LongInt(value),
        Err(_) => AMQPValue::LongLongInt(value),
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
        Field::Integer(value) => integer(*value),
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

#[cfg(test)]
mod tests {
    use lapin::types::generation::gen_field_table;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::messaging::notify::Notice;

    fn encode(table: &FieldTable) -> String {
        let context = gen_field_table(table)(Vec::new().into()).unwrap();
        context.write.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes are those of pika 1.4.4, `pika.data.encode_table` of the same dictionary in the order of its keys.
    #[test]
    fn headers_of_a_notice_are_encoded_as_pika_encodes_them() {
        let notice = Notice {
            id: Uuid::nil(),
            topic: "fedora_image_uploader.published.v1.container.production.fedora".to_owned(),
            body: json!({}),
            schema: Some("fedora_image_uploader.published.v1.container".to_owned()),
            containers: vec!["quay.io/fedora/fedora:43".to_owned()],
        };
        let mut outgoing = notice.outgoing();
        outgoing.headers["sent-at"] = json!("2025-03-12T12:40:03+00:00");
        let expected = "00000115336665646f72615f6d6573736167696e675f636f6e7461696e65725f717561792e696f2f6665646f72612f\
            6665646f72613a34337401176665646f72615f6d6573736167696e675f736368656d61530000002c6665646f72615f696d616765\
            5f75706c6f616465722e7075626c69736865642e76312e636f6e7461696e65721f6665646f72615f6d6573736167696e675f7363\
            68656d615f7061636b616765530000001e6665646f72615f696d6167655f75706c6f616465725f6d65737361676573196665646f\
            72615f6d6573736167696e675f73657665726974794900000014087072696f7269747949000000000773656e742d617453000000\
            19323032352d30332d31325431323a34303a30332b30303a3030";
        assert_eq!(encode(&headers(&outgoing.headers, None)), expected);
    }

    /// Recorded in the same way.
    #[test]
    fn arguments_are_encoded_as_pika_encodes_them() {
        let list = vec![Field::Integer(1), Field::String("x".to_owned()), Field::Boolean(true)];
        let nested = BTreeMap::from([("x-max-length".to_owned(), Field::Integer(5))]);
        let arguments = [
            ("a", Field::Integer(-1)),
            ("b", Field::Integer(2_147_483_647)),
            ("c", Field::Integer(2_147_483_648)),
            ("d", Field::Integer(-2_147_483_649)),
            ("e", Field::Boolean(false)),
            ("f", Field::String("\u{e4}".to_owned())),
            ("g", Field::List(list)),
            ("h", Field::Table(nested)),
        ];
        let arguments = arguments.map(|(name, value)| (name.to_owned(), value));
        let expected = "0000005e016149ffffffff0162497fffffff01636c000000008000000001646cffffffff7fffffff0165740001665300\
            000002c3a40167410000000d49000000015300000001787401016846000000120c782d6d61782d6c656e6774684900000005";
        assert_eq!(encode(&table(&BTreeMap::from(arguments))), expected);
    }
}
