//! The SDK's clients for a bucket.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

use crate::store::s3_config::{DEFAULT_REGION, S3Config};

impl S3Config {
    /// The client for small calls and the one for uploads.
    pub(super) async fn clients(&self) -> (Client, Client) {
        let shared = self.shared_config().await;
        // Servers that are not AWS rarely have a host name for each bucket.
        let path_style = shared.endpoint_url().is_some();
        let reader = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(path_style)
            .retry_config(RetryConfig::disabled())
            .timeout_config(self.timeout_config(self.timeouts.attempt))
            // Several compatible servers refuse the SDK's checksum trailers; DES carries its own checksums.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Uploads are paced by the server's disks, and the protection kills healthy slow ones.
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled()
                    .upload_enabled(false)
                    .grace_period(Duration::from_secs(20))
                    .build(),
            )
            .build();
        let uploader = reader.to_builder().timeout_config(self.timeout_config(self.timeouts.upload_attempt)).build();
        (Client::from_conf(reader), Client::from_conf(uploader))
    }

    async fn shared_config(&self) -> aws_config::SdkConfig {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http).region(self.region().await);
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &self.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(fixed) = &self.credentials {
            let (id, secret) = (&fixed.access_key_id, &fixed.secret_access_key);
            loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "des-configuration"));
        }
        loader.load().await
    }

    /// Not the SDK's own chain: that asks the instance's metadata service, which costs seconds wherever there is none.
    async fn region(&self) -> Region {
        if let Some(region) = &self.region {
            return Region::new(region.clone());
        }
        let profile = match &self.profile {
            Some(profile) => ProfileFileRegionProvider::builder().profile_name(profile).build(),
            None => ProfileFileRegionProvider::builder().build(),
        };
        let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile);
        chain.region().await.unwrap_or_else(|| Region::from_static(DEFAULT_REGION))
    }

    fn timeout_config(&self, attempt: Duration) -> TimeoutConfig {
        TimeoutConfig::builder().connect_timeout(self.timeouts.connect).operation_attempt_timeout(attempt).build()
    }
}
