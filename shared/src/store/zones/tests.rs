use super::*;

const TWO: &str = "
n_bits: 8
zones:
  - name: zone-b
    range: { start: 128, end: 255 }
    local: { base_dir: /data/b }
  - name: zone-a
    range: { start: 0, end: 127 }
    s3: { bucket: des-zone-a, region_name: us-east-1, endpoint_url: https://s3.example.com, prefix: des-a/ }
    failover:
      - { bucket: des-zone-a-copy, region_name: eu-west-1, prefix: des-a/ }
      - { local: { base_dir: /data/a-copy } }
";

fn problems(text: &str) -> Vec<String> {
    ZonesConfig::parse(text).expect_err("it is wrong").problems
}

fn zones(n_bits: &str, zones: &[(&str, i64, i64)]) -> String {
    let zone = |(name, start, end): &(&str, i64, i64)| {
        format!("  - {{name: {name}, range: {{start: {start}, end: {end}}}, s3: {{bucket: b}}}}\n")
    };
    let zones: Vec<String> = zones.iter().map(zone).collect();
    format!("n_bits: {n_bits}\nzones:\n{}", zones.concat())
}

#[test]
fn yaml_and_json_say_the_same() {
    let config = ZonesConfig::parse(TWO).expect("a good file");
    assert_eq!(config.n_bits().get(), 8);
    let names: Vec<_> = config.zones().iter().map(|zone| zone.name.as_str()).collect();
    assert_eq!(names, ["zone-a", "zone-b"], "in the order of their ranges");
    let a = &config.zones()[0];
    assert_eq!(a.range, ShardRange { start: 0, end: 127 });
    let Backend::S3(s3) = &a.store else { panic!("{:?}", a.store) };
    assert_eq!(
        (s3.bucket.as_str(), s3.region.as_deref(), s3.prefix.as_str()),
        ("des-zone-a", Some("us-east-1"), "des-a/")
    );
    assert_eq!(s3.endpoint_url.as_deref(), Some("https://s3.example.com"));
    let copies: Vec<_> = a.replicas.iter().map(Backend::url).collect();
    assert_eq!(copies, ["s3://des-zone-a-copy/des-a", "file:///data/a-copy"]);
    let json = "{\n\t\"n_bits\": 8,\n\t\"zones\": [\n\t\t{\"name\": \"all\", \"range\": {\"start\": 0, \"end\": 255},
        \"s3\": {\"bucket\": \"b\"}}]}";
    assert_eq!(ZonesConfig::parse(json).expect("JSON with tabs").zones()[0].name, "all");
}

#[test]
fn overlaps_and_gaps_are_named() {
    assert_eq!(problems(&zones("8", &[("a", 0, 127), ("b", 120, 255)])), [r#"zones "a" and "b" overlap in 120-127"#]);
    assert_eq!(problems(&zones("8", &[("a", 0, 255), ("b", 10, 20)])), [r#"zones "a" and "b" overlap in 10-20"#]);
    assert_eq!(
        problems(&zones("8", &[("a", 1, 100), ("b", 102, 200)])),
        [
            "no zone covers shard index 0 (0x0)",
            "no zone covers shard index 101 (0x65)",
            "no zone covers shard indexes 201-255 (0xC9-0xFF)"
        ]
    );
}

#[test]
fn ranges_outside_are_named() {
    let told = problems(&zones("4", &[("a", 0, 16)]));
    assert_eq!(told, [r#"zone "a": its range 0-16 lies outside 0-15 (n_bits is 4)"#]);
    let told = problems(&zones("8", &[("a", -1, 255)]));
    assert_eq!(told, [r#"zone "a": range.start is -1; expected a shard index"#]);
    let told = problems(&zones("8", &[("a", 0, 255), ("b", 9, 3)]));
    assert_eq!(told, [r#"zone "b": its range starts at 9 and ends before, at 3"#]);
    let told = problems(&zones("8", &[("a", 0, 4_294_967_295)]));
    assert!(told[0].contains("lies outside 0-255"), "{told:?}");
}

#[test]
fn widths_are_checked() {
    for (n_bits, told) in
        [("3", "n_bits is 3"), ("17", "n_bits is 17"), ("-1", "n_bits is -1"), ("264", "n_bits is 264")]
    {
        let problems = problems(&zones(n_bits, &[("a", 0, 7)]));
        assert_eq!(problems, [format!("{told}; expected 4 to 16")]);
    }
    assert_eq!(problems("zones: []"), ["n_bits is missing; expected 4 to 16"]);
    assert_eq!(problems("n_bits: 8"), ["there are no zones; expected at least one"]);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let text = "
n_bits: 8
zones:
  - {name: a, range: {start: 0, end: 200}, s3: {bucket: ''}}
  - {name: b, range: {start: 5}, s3: {bucket: b}}
  - {name: c, range: {start: 0, end: 99}, s3: {bucket: b}}
  - {name: c, range: {start: 50, end: 255}, s3: {bucket: b}}
  - {range: {start: 0, end: 1}, s3: {bucket: b}, local: {base_dir: /x}}
  - {name: e, range: {start: 0, end: 1}, local: {base_dir: ''}, failover: [{bucket: b, local: {base_dir: /x}}]}
";
    let told = problems(text).join("\n");
    for expected in [
        r#"zone "a": the bucket is empty"#,
        r#"zone "b": range.end is missing"#,
        r#"zone "c" is there twice"#,
        r#"zones "c" and "c" overlap in 50-99"#,
        "zone number 5: it has no name",
        "zone number 5: it has both s3 and local",
        r#"zone "e": local.base_dir is missing or empty"#,
        r#"zone "e": failover number 1: it has both bucket and local"#,
    ] {
        assert!(told.contains(expected), "{expected} is not in:\n{told}");
    }
}

#[test]
fn syntax_and_unknown_settings_are_named() {
    assert!(problems("n_bits: [")[0].contains("cannot be read"));
    assert!(problems("")[0].contains("n_bits"), "{:?}", problems(""));
    let told = problems("n_bits: 8\nzones:\n  - {name: a, rnage: {start: 0, end: 255}, s3: {bucket: b}}\n");
    assert!(told[0].contains("rnage"), "{told:?}");
}

#[tokio::test]
async fn every_index_has_its_zone() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).expect("a");
    std::fs::create_dir(&b).expect("b");
    let zone = |name: &str, start, end, base_dir| ZoneConfig {
        name: name.to_owned(),
        range: ShardRange { start, end },
        store: Backend::Local { base_dir },
        replicas: Vec::new(),
    };
    let n_bits = NBits::new(4).expect("a width");
    let config = ZonesConfig::new(n_bits, vec![zone("b", 5, 15, b), zone("a", 0, 4, a)]).expect("no gaps");
    let zones = config.open(&Layers::new(std::sync::Arc::new(crate::clock::Dice::seeded(1)))).await.expect("folders");
    for index in 0..16 {
        let expected = if index < 5 { "a" } else { "b" };
        assert_eq!(zones.zone_for(index).expect("covered").name, expected, "{index}");
    }
    let error = zones.zone_for(16).expect_err("outside");
    assert_eq!(error.to_string(), "no zone covers shard index 16 (0x10); the zones cover 0-15");
}
