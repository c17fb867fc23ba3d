use super::*;

const SHOP_STACK_FILE: &str = "\
version: 1.0
provider:
  name: openfaas
  gateway: http://127.0.0.1:8080
functions:
  shop:
    lang: rust-hyper
    handler: ./shop
    image: registry.example/shop:1
    environment:
      count: 1.10
      on: yes
      empty:
    readonly_root_filesystem: true
    limits:
      memory: 128Mi
      cpu: 100m
  other:
    lang: dockerfile
    handler: ./other
    image: ${IMAGE:-registry.example/other:1}
configuration:
  copy:
    - ./common
";

fn parse(text: &str) -> Result<StackFile, Failure> {
    StackFile::parse("stack.yaml".into(), text, &|_| None)
}

#[test]
fn scalars_keep_the_characters_that_they_are_written_with() {
    let stack = parse(SHOP_STACK_FILE).expect("a stack file");
    let shop = stack.select_or_all(&["shop".to_owned()]).expect("the function")[0].1;
    let environment = shop.environment.as_ref().expect("variables");
    let value = |name: &str| environment[name].as_deref();
    assert_eq!((value("count"), value("on")), (Some("1.10"), Some("yes")));
    assert_eq!(value("empty").unwrap_or_default(), "");
    assert_eq!(stack.copied_paths, ["./common"]);
    assert_eq!(stack.gateway, None, "faas-cli's default counts as none");
    assert!(stack.warnings.is_empty(), "{:?}", stack.warnings);
}

#[test]
fn functions_are_selected_by_name_and_a_misspelt_name_is_answered_with_the_nearest() {
    let stack = parse(SHOP_STACK_FILE).expect("a stack file");
    let all: Vec<_> = stack
        .select_or_all(&[])
        .expect("all")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(all, ["other", "shop"]);
    let failure = stack
        .select_or_all(&["shp".to_owned()])
        .expect_err("no such function");
    assert!(failure.message.contains("did you mean \"shop\"?"), "{failure:?}");
    assert!(failure.next.contains("other, shop"), "{failure:?}");
}

#[test]
fn a_misspelt_key_is_a_warning_with_the_key_that_was_meant() {
    let stack =
        parse(&SHOP_STACK_FILE.replace("    handler: ./shop", "    hander: ./shop")).expect("a stack file");
    assert_eq!(
        stack.warnings,
        ["stack.yaml: functions.shop.hander is not read: did you mean \"handler\"?"]
    );
}

#[test]
fn what_is_no_stack_file_is_an_error_with_its_place_and_the_next_step() {
    for (text, part) in [
        ("functions:\n  shop:\n   - lang\n", "stack.yaml:3"),
        ("functions: [\n", "stack.yaml:"),
        (
            "provider:\n  name: faas\nfunctions:\n  a:\n    lang: x\n",
            "provider.name",
        ),
        ("version: 1.0\n", "no functions"),
        ("functions:\n  a:\n    image: ${A^^}\n", "stack.yaml:3: ${A^^}"),
    ] {
        let failure = parse(text).expect_err(text);
        assert!(failure.message.contains(part), "{text:?}: {failure:?}");
        assert!(!failure.next.is_empty());
    }
}
