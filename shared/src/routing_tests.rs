use serde_json::Value;

use super::*;

fn bits(n: u8) -> NBits {
    NBits::new(n).expect("a valid width")
}

fn at(text: &str) -> CreatedAt {
    CreatedAt::parse(text).expect("a valid time")
}

/// A uid of the golden file as the existing implementation makes it text.
fn uid_text(uid: &Value) -> String {
    match uid {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        number => number.to_string(),
    }
}

#[test]
fn every_golden_look_up() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/vectors/routing.json");
    let text = std::fs::read_to_string(path).expect("golden file");
    // One uid is an integer that f64 cannot hold; as text it keeps its digits.
    let text = text.replace("\"uid\": 1180591620717411303424", "\"uid\": \"1180591620717411303424\"");
    let golden: Value = serde_json::from_str(&text).expect("golden JSON");
    let cases = golden["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 492);
    let mut unusual = 0;
    for case in cases {
        let uid = uid_text(&case["uid"]);
        let width = case["n_bits"].as_i64().expect("n_bits");
        let Some(n_bits) = u8::try_from(width).ok().and_then(|n| NBits::new(n).ok()) else {
            assert!(case["error"].is_string(), "width {width} is refused by both");
            continue;
        };
        let slot = Slot::for_new(&uid, &at(case["created_at"].as_str().expect("time")), n_bits, DateRule::Written);
        if let Some(error) = case["error"].as_str() {
            // Merely unusual uids: digits without a decimal value are strings, long numbers are numbers.
            unusual += 1;
            if error.contains("Exceeds the limit") {
                assert_eq!(slot.index, decimal_modulo(&uid, n_bits.slots() - 1).expect("all digits"));
            } else {
                assert_eq!(slot.index, crc32fast::hash(uid.as_bytes()) & (n_bits.slots() - 1), "{uid}");
            }
            continue;
        }
        assert_eq!(u64::from(slot.index), case["shard_index"].as_u64().expect("index"), "{uid:?} {width}");
        assert_eq!(slot.hex(), case["shard_hex"].as_str().expect("hex"), "{uid:?} {width}");
        assert_eq!(slot.date.to_string(), case["date_dir"].as_str().expect("date"), "{uid:?} {width}");
    }
    assert_eq!(unusual, 14);
}

#[test]
fn digits_without_a_decimal_value_are_strings() {
    for uid in [
        "\u{b2}", "1\u{b2}", "\u{2460}", "\u{2776}", "\u{1369}", "\u{19da}", "\u{bd}", "\u{2167}", "-5", "+5", "1.0",
        " 1", "",
    ] {
        assert_eq!(decimal_modulo(uid, 255), None, "{uid:?}");
        assert_eq!(shard_index(uid, bits(8)), crc32fast::hash(uid.as_bytes()) & 255);
    }
}

#[test]
fn numbers_of_any_length_and_script() {
    // 10^5000 is a multiple of 2^5000, so only the last digits matter.
    let long = format!("1{}255", "0".repeat(5_000));
    assert_eq!(shard_index(&long, bits(8)), 255);
    assert_eq!(shard_index("\u{661}2\u{969}", bits(8)), 123);
    assert_eq!(shard_index(&"9".repeat(65_535), bits(4)), 15);
}

#[test]
fn the_digit_table_is_sorted_and_disjoint() {
    assert!(DECIMAL_ZEROS.windows(2).all(|pair| pair[0] + 10 <= pair[1]));
    let digits = (0..=u32::from(char::MAX)).filter_map(char::from_u32).filter(|c| decimal_digit(*c).is_some());
    // Each is numeric to the standard library too, whose Unicode is newer.
    let mut count = 0;
    for digit in digits {
        assert!(digit.is_numeric(), "{digit:?}");
        count += 1;
    }
    assert_eq!(count, 680);
}

#[test]
fn new_shards_go_by_utc_and_look_ups_try_both_dates() {
    let evening = at("2025-03-10T23:30:00-05:00");
    let (utc, written) = ("20250311_01", "20250310_01");
    assert_eq!(Slot::for_new("257", &evening, bits(8), DateRule::default()).to_string(), utc);
    assert_eq!(Slot::for_new("257", &evening, bits(8), DateRule::Written).to_string(), written);
    let names = |text| candidate_slots("257", &at(text), bits(8)).iter().map(Slot::to_string).collect::<Vec<_>>();
    assert_eq!(names("2025-03-10T23:30:00-05:00"), [utc, written]);
    assert_eq!(names("2025-03-11T04:30:00Z"), [utc]);
    // The same instant finds the same new shard, however it is written.
    assert_eq!(names("2025-03-11T04:30:00Z")[0], names("2025-03-10T23:30:00-05:00")[0]);
}

#[test]
fn slots_and_dates_have_one_spelling() {
    let slot = Slot::for_new("496", &at("2025-03-10"), bits(9), DateRule::Utc);
    assert_eq!(slot.object_prefix(), "20250310_1F0_");
    assert_eq!(Slot::parse_prefix(&slot.object_prefix(), bits(9)), Ok(slot));
    assert_eq!(Slot::parse("20250310_1F0", bits(9)), Ok(slot));
    for text in
        ["20250310_1F", "20250310_1f0_", "20250310_1F0", "20250310_01F0_", "20250310_+1_", "20250230_01_", "_01_", ""]
    {
        assert!(Slot::parse_prefix(text, bits(8)).is_err(), "{text}");
    }
    assert_eq!("9990601".parse::<ShardDate>().map(|d| (d.year, d.month, d.day)), Ok((999, 6, 1)));
    assert_eq!("10101".parse::<ShardDate>().map(|d| d.to_string()), Ok("10101".to_owned()));
    for text in
        ["0101", "00010101", "2025031", "20251310", "20250300", "20250431", "+2250310", "2025 310", "", "100000101"]
    {
        assert!(text.parse::<ShardDate>().is_err(), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn a_number_routes_as_its_value(number in proptest::num::u128::ANY, zeros in 0_usize..5, width in 4_u8..=16) {
        let uid = format!("{}{number}", "0".repeat(zeros));
        let want = u32::try_from(number % (1 << width)).expect("fits");
        proptest::prop_assert_eq!(shard_index(&uid, bits(width)), want);
    }

    #[test]
    fn every_slot_reads_back(uid in "\\PC{0,12}", width in 4_u8..=16) {
        let slot = Slot::for_new(&uid, &at("0999-06-01"), bits(width), DateRule::Utc);
        proptest::prop_assert_eq!(Slot::parse(&slot.to_string(), bits(width)), Ok(slot));
    }
}
