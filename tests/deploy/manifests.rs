//! The manifests for OpenShift: rendered as `oc apply -k` would, valid, and with everything in them that the program
//! needs to run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader::config::{Config, Provider};
use serde_json::Value;

use crate::{LIMIT, documents, file, folder, outcome, pem, program, python_tool};

const OVERLAYS: [&str; 2] = ["production", "staging"];
const PROVIDERS: [&str; 4] = ["aws", "azure", "container", "gcp"];

/// The schemas that the manifests are held against.
const KUBERNETES: &str = "1.31";

/// The existing service's secrets, by secret and key.
fn secrets() -> BTreeMap<&'static str, Vec<(&'static str, String)>> {
    let word = |key| (key, "made-up".to_owned());
    BTreeMap::from([
        (
            "aws-credentials",
            vec![word("access_key_id"), word("secret_access_key")],
        ),
        (
            "azure-credentials",
            vec![
                word("secret"),
                word("client_id"),
                word("tenant_id"),
                word("subscription_id"),
            ],
        ),
        (
            "podman-credentials",
            vec![
                word("fedoraproject_registry_username"),
                word("fedoraproject_registry_password"),
                word("quay_io_username"),
                word("quay_io_password"),
            ],
        ),
        (
            "cloud-image-uploader-fedora-messaging-ca",
            vec![("cloud-image-uploader.ca", pem("CERTIFICATE"))],
        ),
        (
            "cloud-image-uploader-fedora-messaging-key",
            vec![("cloud-image-uploader.key", pem("PRIVATE KEY"))],
        ),
        (
            "cloud-image-uploader-fedora-messaging-crt",
            vec![("cloud-image-uploader.crt", pem("CERTIFICATE"))],
        ),
        (
            "cloud-image-uploader-google-cloud-key",
            vec![(
                "google_cloud_image_uploader.json",
                r#"{"type": "service_account"}"#.to_owned(),
            )],
        ),
        (
            "registry-fedoraproject-cert",
            vec![("registry-fedoraproject.cert", pem("CERTIFICATE"))],
        ),
        (
            "registry-fedoraproject-key",
            vec![("registry-fedoraproject.key", pem("PRIVATE KEY"))],
        ),
    ])
}

/// One overlay as YAML.
fn render(overlay: &str) -> String {
    let home = folder();
    let mut kubectl = python_tool("kubectl", home.path());
    kubectl
        .arg("kustomize")
        .arg(file("deploy/openshift/overlays").join(overlay));
    let output = kubectl.output().unwrap();
    let written = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && written.is_empty(), "{overlay}: {written}");
    String::from_utf8(output.stdout).unwrap()
}

/// One overlay as objects.
fn objects(overlay: &str) -> Vec<Value> {
    let folder = folder();
    let yaml = folder.path().join("rendered.yaml");
    fs::write(&yaml, render(overlay)).unwrap();
    documents(&yaml)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list:#}"))
}

/// The Deployment of a provider and the text of the configuration file that it mounts.
fn deployed<'a>(objects: &'a [Value], provider: &str) -> (&'a Value, &'a str) {
    let name = format!("cloud-image-uploader-{provider}");
    let deployment = *of_kind(objects, "Deployment")
        .iter()
        .find(|deployment| deployment["metadata"]["name"] == name.as_str())
        .unwrap();
    let volumes = &deployment["spec"]["template"]["spec"]["volumes"];
    let map = &named(volumes, "config")["configMap"]["name"];
    assert_ne!(map, &name, "a changed file would roll nothing out");
    let maps = of_kind(objects, "ConfigMap");
    let map = maps.iter().find(|object| &object["metadata"]["name"] == map).unwrap();
    let text = map["data"][format!("{provider}-config.toml")].as_str().unwrap();
    (deployment, text)
}

fn configuration(overlay: &str, provider: &str) -> Config {
    let objects = objects(overlay);
    let (_, text) = deployed(&objects, provider);
    Config::parse(text, Path::new("config.toml")).unwrap_or_else(|problems| panic!("{overlay}: {problems}"))
}

#[test]
fn every_object_is_valid() {
    let folder = folder();
    let path = folder.path().join("rendered.yaml");
    let validate = |yaml: &str| {
        fs::write(&path, yaml).unwrap();
        let mut validate = python_tool("kubernetes-validate", folder.path());
        outcome(validate.args(["--strict", "-k", KUBERNETES]).arg(&path))
    };
    for overlay in OVERLAYS {
        let yaml = render(overlay);
        let (good, written) = validate(&yaml);
        assert!(good, "{overlay}: {written}");
        let (good, written) = validate(&yaml.replacen("replicas: 1", "replicas: one", 1));
        assert!(!good, "{written}");
        let (good, written) = validate(&yaml.replacen("readOnlyRootFilesystem", "readonlyRootFilesystem", 1));
        assert!(!good, "{written}");
    }
}

/// The validator knows no schema of OpenShift's own kinds, so what matters of them is looked at here.
#[test]
fn objects_name_each_other() {
    for (overlay, branch) in [("production", "prod"), ("staging", "main")] {
        let objects = objects(overlay);
        let mut kinds: Vec<_> = objects
            .iter()
            .map(|object| {
                assert_eq!(object["metadata"]["namespace"], "cloud-image-uploader", "{object:#}");
                (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap())
            })
            .collect();
        kinds.sort_unstable();
        let mut expected = vec![
            ("build.openshift.io/v1", "BuildConfig"),
            ("image.openshift.io/v1", "ImageStream"),
            ("monitoring.coreos.com/v1", "ServiceMonitor"),
            ("networking.k8s.io/v1", "NetworkPolicy"),
            ("v1", "Service"),
        ];
        expected.extend([("apps/v1", "Deployment"); 4]);
        expected.extend([("v1", "ConfigMap"); 4]);
        expected.sort_unstable();
        assert_eq!(kinds, expected);

        let build = &of_kind(&objects, "BuildConfig")[0]["spec"];
        assert_eq!(build["source"]["git"]["ref"], branch);
        assert_eq!(build["output"]["to"]["kind"], "ImageStreamTag");
        assert_eq!(build["output"]["to"]["name"], "cloud-image-uploader-provider:built");
        let recipe = build["strategy"]["dockerStrategy"]["dockerfilePath"].as_str().unwrap();
        assert!(file(recipe).exists());
        let stream = of_kind(&objects, "ImageStream")[0];
        assert_eq!(stream["metadata"]["name"], "cloud-image-uploader-provider");

        let service = of_kind(&objects, "Service")[0];
        let monitor = &of_kind(&objects, "ServiceMonitor")[0]["spec"];
        assert_eq!(monitor["selector"]["matchLabels"], service["metadata"]["labels"]);
        assert_eq!(monitor["endpoints"][0]["path"], "/metrics");
        let port = monitor["endpoints"][0]["port"].as_str().unwrap();
        let port = &named(&service["spec"]["ports"], port)["targetPort"];
        let policy = &of_kind(&objects, "NetworkPolicy")[0]["spec"];
        assert_eq!(policy["podSelector"]["matchLabels"], service["spec"]["selector"]);
        assert_eq!(&policy["ingress"][0]["ports"][0]["port"], port);
        for provider in PROVIDERS {
            let (deployment, _) = deployed(&objects, provider);
            let template = &deployment["spec"]["template"];
            assert_eq!(
                template["metadata"]["labels"],
                deployment["spec"]["selector"]["matchLabels"]
            );
            assert_eq!(template["metadata"]["labels"]["provider"], provider);
            assert_eq!(
                template["metadata"]["labels"]["app"],
                service["spec"]["selector"]["app"]
            );
            let container = &template["spec"]["containers"][0];
            named(&container["ports"], port.as_str().unwrap());
            let triggers = &deployment["metadata"]["annotations"]["image.openshift.io/triggers"];
            let triggers: Value = serde_json::from_str(triggers.as_str().unwrap()).unwrap();
            assert_eq!(triggers[0]["from"]["kind"], "ImageStreamTag");
            assert_eq!(
                triggers[0]["from"]["name"], container["image"],
                "rolled out by its own tag"
            );
            assert_eq!(container["image"], format!("cloud-image-uploader-provider:{provider}"));
            let name = container["name"].as_str().unwrap();
            let field = format!("spec.template.spec.containers[?(@.name==\"{name}\")].image");
            assert_eq!(triggers[0]["fieldPath"], field.as_str());
        }
    }
}

/// The program itself, with the files and variables that the pod would give it, finds everything it needs.
#[tokio::test]
async fn a_pod_has_what_its_configuration_needs() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        for provider in PROVIDERS {
            let pod = folder();
            let root = pod.path().to_str().unwrap();
            let (deployment, text) = deployed(&objects, provider);
            let spec = &deployment["spec"]["template"]["spec"];
            let container = &spec["containers"][0];
            for mount in container["volumeMounts"].as_array().unwrap() {
                assert_eq!(mount["readOnly"], true, "{mount:#}");
                let volume = named(&spec["volumes"], mount["name"].as_str().unwrap());
                let path = PathBuf::from(format!("{root}{}", mount["mountPath"].as_str().unwrap()));
                fs::create_dir_all(&path).unwrap();
                for (name, content) in contents(volume, provider, text) {
                    // The paths of the pod, below the folder that plays it.
                    fs::write(path.join(name), content.replace("\"/etc/", &format!("\"{root}/etc/"))).unwrap();
                }
            }
            let mut program = program().args(["check", "--offline"]);
            for variable in container["env"].as_array().unwrap() {
                let value = match variable["value"].as_str() {
                    Some(value) => value.replace("/etc/", &format!("{root}/etc/")),
                    None => secret(&variable["valueFrom"]["secretKeyRef"]),
                };
                program = program.env(variable["name"].as_str().unwrap(), value);
            }
            let exit = program.run(LIMIT).await.unwrap();
            assert_eq!(exit.code, Some(0), "{overlay}, {provider}: {}", exit.stderr);
            assert!(exit.stdout.contains(&format!("provider {provider}")), "{}", exit.stdout);
        }
    }
}

/// The files in a volume; `text` is the configuration.
fn contents(volume: &Value, provider: &str, text: &str) -> Vec<(String, String)> {
    let of_secret = |name: &Value| -> Vec<(String, String)> {
        let files = secrets()
            .remove(name.as_str().unwrap())
            .unwrap_or_else(|| panic!("no secret {name}"));
        files
            .into_iter()
            .map(|(file, content)| (file.to_owned(), content))
            .collect()
    };
    if volume.get("configMap").is_some() {
        vec![(format!("{provider}-config.toml"), text.to_owned())]
    } else if let Some(sources) = volume["projected"]["sources"].as_array() {
        sources
            .iter()
            .flat_map(|source| of_secret(&source["secret"]["name"]))
            .collect()
    } else {
        of_secret(&volume["secret"]["secretName"])
    }
}

fn secret(reference: &Value) -> String {
    let (name, key) = (reference["name"].as_str().unwrap(), reference["key"].as_str().unwrap());
    let secrets = secrets();
    let found = secrets[name].iter().find(|(known, _)| *known == key);
    found.unwrap_or_else(|| panic!("no {key} in secret {name}")).1.clone()
}

/// OpenShift's restricted policy, and limits that follow from what the configuration allows the program to take.
#[test]
fn a_pod_is_confined_and_has_room() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        for provider in PROVIDERS {
            let (deployment, _) = deployed(&objects, provider);
            let config = configuration(overlay, provider);
            let spec = &deployment["spec"]["template"]["spec"];
            assert_eq!(spec["automountServiceAccountToken"], false);
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            let container = &spec["containers"][0];
            let security = &container["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"]["drop"][0], "ALL");

            let mebibytes = |value: &Value| -> u64 {
                let text = value["memory"].as_str().unwrap();
                text.strip_suffix("Mi").unwrap().parse().unwrap()
            };
            let most = (config.service.buffer_memory >> 20) + 128;
            let (asked, limit) = (
                mebibytes(&container["resources"]["requests"]),
                mebibytes(&container["resources"]["limits"]),
            );
            assert!(
                asked >= most && limit * 10 >= most * 11,
                "{asked} MiB, {limit} MiB for {most} MiB"
            );

            let grace = Duration::from_secs(spec["terminationGracePeriodSeconds"].as_u64().unwrap());
            assert!(grace >= config.service.shutdown_grace + Duration::from_secs(30));

            let monitoring = config.monitoring.unwrap();
            assert_eq!(monitoring.address, "", "the node must reach it");
            assert_eq!(container["ports"][0]["containerPort"], monitoring.port);
            for (probe, path) in [("livenessProbe", "/live"), ("readinessProbe", "/ready")] {
                let get = &container[probe]["httpGet"];
                assert_eq!(
                    (&get["path"], &get["port"]),
                    (&path.into(), &container["ports"][0]["name"])
                );
            }
        }
    }
}

/// The examples in `config/` have the values of production too, so neither can fall behind the other.
#[test]
fn production_says_what_the_examples_say() {
    let contents = |mut config: Config| {
        config.path = PathBuf::new();
        format!("{config:#?}")
    };
    for provider in PROVIDERS {
        let example = Config::load(&file(&format!("config/{provider}.toml"))).unwrap();
        assert_eq!(
            contents(configuration("production", provider)),
            contents(example),
            "{provider}"
        );
    }
}

#[test]
fn staging_touches_nothing_of_production() {
    for provider in PROVIDERS {
        let [production, staging] = OVERLAYS.map(|overlay| configuration(overlay, provider));
        assert_eq!(staging.amqp.url.host(), "rabbitmq.stg.fedoraproject.org");
        assert_eq!(staging.amqp.url.user(), "cloud-image-uploader.stg");
        assert_eq!(staging.amqp.topic_prefix, "org.fedoraproject.stg");
        assert!(staging.amqp.queues[0].name.starts_with("cloud-image-uploader.stg-"));
        assert_eq!(
            staging.amqp.bindings[0].queue.as_ref(),
            Some(&staging.amqp.queues[0].name)
        );
        match (production.provider, staging.provider) {
            (Provider::Aws(production), Provider::Aws(staging)) => {
                assert_ne!(production.snapshot_method, staging.snapshot_method, "the bucket");
            }
            (Provider::Azure(production), Provider::Azure(staging)) => {
                assert_ne!(production.resource_group_name, staging.resource_group_name);
                assert_ne!(production.storage_account_name, staging.storage_account_name);
                assert_ne!(production.gallery_name, staging.gallery_name);
            }
            (Provider::Gcp(production), Provider::Gcp(staging)) => {
                assert_ne!(production.project, staging.project);
                assert_ne!(production.bucket_name, staging.bucket_name);
            }
            (Provider::Container(production), Provider::Container(staging)) => {
                for registry in &staging.registries {
                    assert!(production.registries.iter().all(|other| other.url != registry.url));
                }
            }
            other => panic!("{other:?}"),
        }
    }
}
