//! Tests of `redact`: what has to go, and what has to stay readable.

use super::*;

fn redactor(variables: &[(&str, &str)]) -> Redactor {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Redactor::from_variables(variables.iter().map(owned))
}

#[test]
fn values_of_secret_variables_are_masked_in_every_form() {
    let redactor = redactor(&[
        ("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI+K7MDENG"),
        ("RUNPOD_API_KEY", "first-line\nsecond-line"),
        ("MY_DB_PASSWORD", "hunter2hunter2"),
        ("HF_TOKEN", "hunter2h"),
        ("AWS_REGION", "us-east-1"),
        ("SHORT_TOKEN", "abc"),
    ]);
    for (text, clean) in [
        ("key=wJalr/XUtnFEMI+K7MDENG;", "key=[redacted];"),
        ("wJalr%2FXUtnFEMI%2BK7MDENG", "[redacted]"),
        ("first-line and second-line", "[redacted] and [redacted]"),
        // The longer of two values that begin alike.
        ("xhunter2hunter2x", "x[redacted]x"),
        ("us-east-1 abc", "us-east-1 abc"),
    ] {
        assert_eq!(redactor.redact(text), clean);
    }
}

#[test]
fn what_looks_like_a_secret_is_masked() {
    let redactor = redactor(&[]);
    for (text, clean) in [
        (
            "GET https://b.s3.amazonaws.com/k?x=1&X-Amz-Credential=AK%2F1&X-Amz-Signature=ab12 200",
            "GET https://b.s3.amazonaws.com/k?[redacted] 200",
        ),
        (
            "<a href=\"https://s.blob.core.windows.net/c?sv=1&sig=abc%3D\">",
            "<a href=\"https://s.blob.core.windows.net/c?[redacted]\">",
        ),
        (
            "\u{3000}http://h/k?AWSAccessKeyId=AK&Signature=zz",
            "\u{3000}http://h/k?[redacted]",
        ),
        (
            "Authorization: Bearer abc.def-123",
            "Authorization: [redacted]",
        ),
        ("authorization=Basic dXNlcg==", "authorization=[redacted]"),
        (
            "{\"Authorization\": \"AWS4-HMAC-SHA256 Credential=x, Signature=y\", \"a\": 1}",
            "{\"Authorization\": \"[redacted]\", \"a\": 1}",
        ),
        (
            "sent bearer abcdefgh12345678 ok",
            "sent bearer [redacted] ok",
        ),
        ("key sk-proj-abcdefghij0123456789", "key [redacted]"),
        ("'hf_abcdefghijklmnopqrstuvwxyz0123456'", "'[redacted]'"),
        ("id AKIAIOSFODNN7EXAMPLE", "id [redacted]"),
        (
            "aws_secret_access_key = abc/def+ghi",
            "aws_secret_access_key = [redacted]",
        ),
        (
            "\"sessionToken\":\"abc\",\"n\":1",
            "\"sessionToken\":\"[redacted]\",\"n\":1",
        ),
        (
            "s3://user:pass@host:9000/b",
            "s3://user:[redacted]@host:9000/b",
        ),
        (
            "t eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N .",
            "t [redacted] .",
        ),
    ] {
        assert_eq!(redactor.redact(text), clean, "{text}");
    }
}

#[test]
fn ordinary_output_is_left_alone_and_not_copied() {
    let redactor = redactor(&[("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")]);
    for text in [
        "iter 5200: loss 2.9130, time 243.2ms, mfu 38.1%",
        "task-0123456789012345678901 disk-0123456789012345678901",
        "from sklearn import x; sk-learn is fine",
        "tokens per second: 12000, api_keys",
        "authorization failed",
        "Asian languages, asiatic_elephants_and_tigers",
        "https://example.com/a?b=c@d",
        "10% | 3/30 [00:01<00:09, 2.9it/s]",
        "日本語 :// ? = &",
        "",
    ] {
        assert!(
            matches!(redactor.redact(text), Cow::Borrowed(same) if same == text),
            "{text}"
        );
    }
}

#[test]
fn a_value_learned_later_is_masked_from_then_on() {
    let redactor = redactor(&[]);
    assert_eq!(redactor.redact("got temporary-key"), "got temporary-key");
    redactor.learn("temporary-key");
    assert_eq!(redactor.redact("got temporary-key"), "got [redacted]");
}

#[test]
fn names_tell_secrets_and_whose_they_are() {
    for (name, secret, the_agents) in [
        ("AWS_SECRET_ACCESS_KEY", true, true),
        ("AWS_ACCESS_KEY_ID", true, true),
        ("CONTAINER_API_KEY", true, true),
        ("AGENT_TOKEN", true, true),
        ("AGENT_READ_TOKEN", true, true),
        ("HF_TOKEN", true, false),
        ("WANDB_API_KEY", true, false),
        ("DB_PASSWORD", true, false),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", false, true),
        ("GOOGLE_APPLICATION_CREDENTIALS", false, true),
        ("AWS_REGION", false, false),
        ("AWS_ENDPOINT_URL", false, false),
        ("SSH_PUBLIC_KEY", false, false),
        ("AGENT_JOB_ID", false, false),
        ("PATH", false, false),
    ] {
        assert_eq!(is_secret(name), secret, "{name}");
        assert_eq!(is_the_agents(name), the_agents, "{name}");
    }
}
